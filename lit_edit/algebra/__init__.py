"""Linear algebra of solver and spectra: metrics and their inverses, earlier keys, leading singular triples, drift."""

"""A reference model that knows the true facts of CounterFact: what it reads, how it is trained and what is measured of it."""

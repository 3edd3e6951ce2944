"""The command line behind its verbs: options and files of options, names found, mistakes told in a sentence."""

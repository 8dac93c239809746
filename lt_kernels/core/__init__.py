"""The base of all other parts: the operators' settings and arguments, dtypes, checks, and the tables of modules."""

"""What every other part stands on: settings and arguments of the operators, dtypes, checks, and tables of modules."""

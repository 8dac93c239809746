"""The ground floor: the words and numbers of the operators, checks and tables. It imports nothing else of ours."""

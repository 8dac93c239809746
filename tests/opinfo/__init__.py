"""The functions as entries of torch's own table of operators, and the tests that torch runs over such entries."""

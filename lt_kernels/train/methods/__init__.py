"""The methods that a run can train, by name: what each consists of, and how it is made for a run."""

"""A sheet for each goal: what its call launches, what each unit of a GPU has to do for that, and how long it takes."""

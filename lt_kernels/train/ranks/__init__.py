"""A run in several processes: how they are started, what each is, what they share and how they end."""

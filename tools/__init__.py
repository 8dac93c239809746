"""Scripts of the repository that write files about what it depends on."""

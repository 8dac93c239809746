"""Losses whose classes are sharded over the ranks of a process group: communication, and the merging of statistics."""

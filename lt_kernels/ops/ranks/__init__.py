"""Losses whose classes are sharded over the ranks of a process group: the exchanges, and the merging of statistics."""

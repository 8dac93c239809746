"""Comparisons: methods over seeds, trained side by side, summed up and reported."""

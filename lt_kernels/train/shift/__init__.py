"""Finished runs judged on test sets whose classes are distributed otherwise than in training."""

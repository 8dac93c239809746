"""Augmentations of whole batches, by name, and the mixing of samples (MixUp, CutMix)."""

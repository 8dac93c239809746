"""Data of the user's own: a folder of pictures, a data set of the library datasets, or any torch Dataset."""

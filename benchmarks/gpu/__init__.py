"""The check of everything on a GPU: is it right, is it the same twice, and how fast is it."""

"""One run: built, trained with checkpoints that resume it to the bit, recorded, and read back when it is finished."""

"""What finished runs have learnt: measured, drawn, and written with the numbers behind each picture."""

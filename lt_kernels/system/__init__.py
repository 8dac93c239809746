"""What commands and the trainer need of the operating system: whole files, text files, streams and signals."""

"""What a finished run is used for: probabilities of classes under any prior, and networks for other programs."""

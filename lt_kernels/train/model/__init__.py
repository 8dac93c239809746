"""What is trained and judged: networks, the classifier, its scores, and readings of what it has learnt."""

"""Cases by the thousand, each judged against dense formulas in float64."""

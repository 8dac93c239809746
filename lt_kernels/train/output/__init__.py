"""What reports are made of: cells of tables, HTML, figures, and the terminal."""

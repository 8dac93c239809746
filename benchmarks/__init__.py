"""What is measured (cases), against whom (providers), how (run), and the tables that the README quotes (table)."""

"""What a person can ask for: one file per verb of the command line."""

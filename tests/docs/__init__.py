"""The documents are true: what they show is run, and their tables are compared with the code."""

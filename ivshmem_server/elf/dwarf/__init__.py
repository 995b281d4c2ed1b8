"""Debug information: its files, its entries, and where a name is in it."""

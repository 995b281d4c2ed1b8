"""C types, and the values that bytes in memory have by them."""

"""C definitions from the debug information of an ELF file."""

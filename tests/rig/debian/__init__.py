"""What comes from Debian: packages, platforms, and where they are kept."""

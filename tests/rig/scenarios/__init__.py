"""What several kinds of guest are put through."""

"""The messages, one file a subject."""

"""Byte-level fuzzing: targets, a corpus of valid conversations, and a bounded run of each for the tests."""

"""Programs that tests run: ours, and other people's."""

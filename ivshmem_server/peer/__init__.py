"""The client library: a peer of other guests and programs."""

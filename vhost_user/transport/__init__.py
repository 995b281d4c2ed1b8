"""Requests and their answers over a socket."""

"""Tracing: a proxy between a front-end and a back-end, and what it prints of their messages."""

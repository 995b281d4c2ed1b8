"""Errors of a stream that carries requests and their answers."""


class ConnectionLostError(Exception):
    """Nothing can be sent or received any more. One line that says why."""

"""What is in an ExceptionGroup that a nursery put around it."""

from __future__ import annotations


def only(error: Exception) -> Exception:
    """Return what is in a group of one, or in one in another; `error` itself where it is no such group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

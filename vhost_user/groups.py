"""What is in an ExceptionGroup that a nursery put around it."""

from __future__ import annotations


def only(error: Exception) -> Exception:
    """Return what is in a group of one, or in one in another; `error` itself where it is no such group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def only_exit(group: BaseExceptionGroup[BaseException]) -> SystemExit | None:
    """Return a SystemExit of a group that has nothing else, however deep; None for any other group."""
    exits, others = group.split(SystemExit)
    found: BaseException | None = exits if others is None else None
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, SystemExit) else None

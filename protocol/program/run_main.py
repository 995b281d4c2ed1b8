"""Runs the main function of a small program, whose errors are lines and not tracebacks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.io.background import unwrap_group
from protocol.program.command_line import INTERRUPTED, UserError, fail
from protocol.program.socket_errors import cannot_listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run_main(main: Callable[..., Awaitable[object]], *arguments: object) -> int:
    """Run `main(*arguments)` under trio; return its exit code, or 0 where it returns none, for sys.exit().

    ::

        if __name__ == "__main__":
            sys.exit(run_main(main, *sys.argv[1:]))

    Ctrl-C ends it, with 130. A UserError, and the OSError of a socket that cannot be listened on, is
    printed as one line with the name of the program, and ends it with 1. Whatever else is raised
    is raised again.
    """
    try:
        result = trio.run(partial(main, *arguments))
    except BaseException as raised:
        error = unwrap_group(raised)
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if (text := _in_one_line(error)) is None:
            raise
        return fail(Path(sys.argv[0]).name, text)
    return result if isinstance(result, int) else 0


def _in_one_line(error: BaseException) -> str | None:
    """Return what to tell the user; None for an error that is not the user's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return str(cannot_listen(error.filename, error))
    return None

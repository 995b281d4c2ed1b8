"""What is said of a socket that cannot be had: nobody is to choose another path where that helps nobody."""

from __future__ import annotations

import errno
import os

import pytest

from protocol.program.socket_errors import cause_and_remedy


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EMFILE, "Too many open files; raise the limit of open files (ulimit -n)"),
        (errno.ENOSPC, "No space left on device; make room, or raise the limit that is reached"),
        (
            errno.EPERM,
            "Operation not permitted; its filesystem may not support sockets: choose a path on another",
        ),
        (errno.ENOENT, "No such file or directory; create the directory first"),
        (errno.ENOTDIR, "Not a directory; choose another path"),
    ],
)
def test_remedy_fits_the_cause(number: int, said: str) -> None:
    assert cause_and_remedy(OSError(number, os.strerror(number))) == said

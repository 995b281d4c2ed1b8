"""Want of descriptors or memory while a process serves: logged once, and waited out."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RETRY_SECONDS = 0.25
"""How long to wait before the next attempt: nothing tells when there are means again."""

_REMEDIES = {
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files (sysctl fs.file-max)",
    errno.ENOBUFS: "free memory, or give this program more",
    errno.ENOMEM: "free memory, or give this program more",
    errno.ENOSPC: "make room, or raise the limit that is reached",
}

_T = TypeVar("_T")


def is_exhausted(error: OSError) -> bool:
    """Tell whether the process or the machine has run out of something, which may change at any time."""
    return error.errno in _REMEDIES


def cause_and_remedy(error: OSError) -> str:
    """Return both in one line, for an error of which `is_exhausted()` is true; of another one the cause."""
    remedy = _REMEDIES.get(error.errno or 0)
    cause = error.strerror or str(error)
    return cause if remedy is None else f"{cause}; {remedy}"


def cause_and(error: OSError, remedy: str) -> str:
    """Return the cause and `remedy` in one line; the remedy for exhaustion where that is the cause."""
    return cause_and_remedy(error) if is_exhausted(error) else f"{error.strerror or error}; {remedy}"


async def retry_until_available(attempt: Callable[[], Awaitable[_T]], complain: Callable[[str], None]) -> _T:
    """Return what `attempt` returns, however often it fails for want of means.

    `complain` is called with cause and remedy the first time that it does. Any other OSError is raised.
    """
    complained = False
    while True:
        try:
            return await attempt()
        except OSError as error:
            if not is_exhausted(error):
                raise
            if not complained:
                complained = True
                complain(cause_and_remedy(error))
        await trio.sleep(RETRY_SECONDS)

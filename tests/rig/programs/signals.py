"""Signals as the children of tests receive them: none is ignored, none is blocked."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}
"""What every Python ignores, and its subprocess module restores for a child."""


@contextmanager
def default_in_children() -> Iterator[None]:
    """Start the children of the block with default signals, whatever this process was started with.

    An ignored signal stays ignored across exec, and so do blocked ones: under nohup(1), children would
    never be told of a hangup. A handler is replaced by the default then. So a signal that this process
    ignores gets a handler that does nothing, and still has no effect here.
    """
    ignored = [each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN]
    replaced = [each for each in ignored if each not in _PYTHONS_OWN]
    for number in replaced:
        signal.signal(number, _do_nothing)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in replaced:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(*_: object) -> None:
    pass

"""Containment: an exception in the user's own code costs one request, and no more.

Chips, lines, ports and disks of one's own are asked at a guest's every request. Whatever they raise, the
driver gets an error as the device's specification has it, the traceback is in the log, and all else goes on.
A guest tries again and again, so a traceback is logged once for each place that it comes from.

How it works: a block is entered around each call of the user's code, in the task that asks. The exception
ends there; neither it nor its traceback is kept, since its frames would keep views of the guest's memory,
and the memory mapped. What is kept is a key for each place that was logged, at most _MOST of them a device.
Cancellation passes through, so a front-end that leaves also ends code that waits.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import traceback
from typing import TYPE_CHECKING

import trio

from protocol.io.background import unwrap_group

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from types import FrameType, TracebackType
    from typing import Self

CALL_SECONDS = 10.0
"""How long an async method may take at a guest's request, where others of its device wait meanwhile."""

_MOST = 100
"""How many failures of one device are logged; who has seen so many has enough to do."""


class Containment:
    """Contains what the code of a device's user raises.

    ::

        own = Containment(_log)
        with own.code("line 3", "the guest gets an error", expected=LineError) as attempt:
            level = await chip.value(3)
        if attempt.failed: ...

    An Exception ends the block, and no more; so does an ExceptionGroup. What is not an Exception passes, such
    as trio.Cancelled and KeyboardInterrupt, also from within a group.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[object] = set()

    def code(
        self, what: str, effect: str, *, expected: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> _Attempt:
        """Contain what `what` raises in a block; `effect` is what comes of it, both for the log.

        An exception that is `expected`, also as the only one in a group, is not a failure, and is not logged.
        """
        return _Attempt(self, what, effect, expected)

    def failed(self, what: str, effect: str, error: Exception) -> None:
        """Log what `what` has raised, unless it did so at the same place before."""
        key = what, effect, _places(error)
        if key in self._told or len(self._told) > _MOST:
            return
        self._told.add(key)
        if len(self._told) > _MOST:
            self._log.error("%s failed, in one more way; no others are logged", what)
        elif self._log.isEnabledFor(logging.ERROR):
            self._log_with_traceback(f"{what} failed: {effect}. This is logged once.", error)

    def _log_with_traceback(self, text: str, error: Exception) -> None:
        """Log an exception as text: who keeps records would keep frames, and a guest's memory with them."""
        record = self._log.makeRecord(self._log.name, logging.ERROR, __file__, 0, text, (), None)
        record.exc_text = "".join(traceback.format_exception(error)).rstrip()
        self._log.handle(record)


class _Attempt:
    """A block that is contained. It keeps no exception, which would keep all that its frames know."""

    __slots__ = ("_containment", "_effect", "_expected", "_what", "failed", "refusal")

    def __init__(
        self,
        containment: Containment,
        what: str,
        effect: str,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self.failed = False
        """Whether an exception has ended it, expected or not."""
        self.refusal: str | None = None
        """The words of one that was expected."""
        self._containment = containment
        self._what = what
        self._effect = effect
        self._expected = expected

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        rest = None
        if isinstance(error, BaseExceptionGroup) and not isinstance(error, Exception):
            error, rest = error.split(Exception)
        if isinstance(error, Exception):
            self._take(error)
        if rest is not None:
            raise rest
        return self.failed

    def _take(self, error: Exception) -> None:
        self.failed = True
        if isinstance(cause := unwrap_group(error), self._expected):
            self.refusal = str(cause)
        else:
            self._containment.failed(self._what, self._effect, error)


def refuse_async(cls: type, base: type, *, but: Container[str] = ()) -> None:
    """Raise TypeError where `cls` has an async method in the place of one of `base` that is not awaited.

    It would never run, and seem to have done what it was asked for. Methods in `but` may be either.
    """
    for name, method in vars(cls).items():
        plain = getattr(base, name, None)
        if name in but or not inspect.isfunction(plain) or inspect.iscoroutinefunction(plain):
            continue
        if inspect.iscoroutinefunction(method):
            raise TypeError(
                f"{cls.__name__}.{name}() is async, but called without await; make it a plain one"
            )


@contextlib.contextmanager
def in_time(seconds: float = CALL_SECONDS) -> Iterator[None]:
    """Cancel the block after so many seconds, and raise TimeoutError. Has no power over what blocks."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(f"it has not returned within {seconds:g} s, and was cancelled")


def in_one_line(error: BaseException) -> str:
    """Return what an exception says, and where in code that is not ours it comes from."""
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = list(traceback.walk_tb(error.__traceback__))
    own = list(itertools.dropwhile(lambda each: _is_ours(each[0]), frames))
    own = list(itertools.takewhile(lambda each: not _is_ours(each[0]), own)) or frames
    if isinstance(error, SyntaxError) or not own:  # the former says so itself
        return text
    frame, line = own[-1]
    return f"{text} ({frame.f_code.co_filename}, line {line})"


def _is_ours(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in {"vhost_user", "protocol", "importlib"}


def _places(error: BaseException) -> object:
    """Return what is the same of two exceptions that are of one kind and from one place."""
    if isinstance(error, BaseExceptionGroup):
        return frozenset(map(_places, error.exceptions))
    place = None
    trace = error.__traceback__
    while trace is not None:
        place = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return type(error).__qualname__, place

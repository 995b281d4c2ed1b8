"""Faults of a disk on demand: rules for requests to fail, come late, or get stuck."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.program.command_line import UserError
from protocol.program.units import parse_time
from protocol.virtio.blk import RequestStatus, RequestType
from protocol.words import plural
from vhost_user.devices.blk.requests import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.devices.blk.requests import Request

_log = logging.getLogger("vhost_user.blk")

SYNTAX = "OPERATION[:lba=FIRST[-LAST]][:times=N]:error|unsupported|stuck|latency=TIME"
"""What a rule looks like, for people."""


class Action(Enum):
    """What a fault does to a request."""

    ERROR = "error"
    UNSUPPORTED = "unsupported"
    STUCK = "stuck"
    LATENCY = "latency"

    @property
    def status(self) -> RequestStatus | None:
        """With what the request is answered, undone; None where it is done in the end."""
        return _STATUS.get(self)


_STATUS = {Action.ERROR: RequestStatus.IOERR, Action.UNSUPPORTED: RequestStatus.UNSUPP}

_ANY = "any"


@dataclass(frozen=True)
class Fault:
    """One rule. `parse_fault()` makes one of text."""

    action: Action
    type: RequestType | None = None
    """Requests of which type; None for any."""
    sectors: range | None = None
    """Requests that touch one of these; None for all."""
    times: int | None = None
    """How many requests, the first ones; None for no end."""
    seconds: float = 0.0
    """How late the request is, for LATENCY."""

    def concerns(self, request: Request) -> bool:
        """Tell whether the rule is about this request."""
        if self.type is not None and request.type is not self.type:
            return False
        sectors = self.sectors
        return sectors is None or any(
            start < sectors.stop and sectors.start < start + count for start, count, _ in request.segments
        )


class Faults:
    """The rules of one disk, which may change at any time. The first that concerns a request counts."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.rules = list(faults)
        """The rules, in their order; `set()` replaces them."""
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self.rules)

    def set(self, faults: Iterable[Fault]) -> None:
        """Have these rules from now on, also for the requests that are stuck."""
        self.rules = list(faults)
        self._changed.unpark_all()

    def take(self, request: Request) -> Fault | None:
        """Return the rule for a request, if there is one; counts as one of its times."""
        for place, fault in enumerate(self.rules):
            if fault.concerns(request):
                if fault.times is not None:
                    self.rules[place : place + 1] = (
                        [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    )
                return fault
        return None

    async def changed(self) -> None:
        """Wait until `set()` is called."""
        await self._changed.park()


class FaultFile:
    """A file with rules, one a line, that is looked at now and then. One that is gone has no rules."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._version = self._stat()

    def read(self) -> list[Fault]:
        """Return the rules that are in it. Raises UserError."""
        try:
            if self._path.is_fifo():  # which would keep us until somebody writes
                raise UserError(f"{self._path} is a pipe, which is read once only; give a file of rules")
            return parse_faults(self._path.read_text())
        except UnicodeDecodeError:
            raise UserError(f"{self._path} is not a text; give a file of rules: {SYNTAX}") from None
        except ValueError as error:
            raise UserError(f"{self._path}: {error}") from None
        except OSError as error:
            raise UserError(
                f"cannot read {self._path}: {error.strerror}; an empty file is one without faults"
            ) from None

    def changed(self) -> list[Fault] | None:
        """Return the rules if the file is another one than last time; None if it is not, or is wrong."""
        version = self._stat()
        if version == self._version:
            return None
        self._version = version
        try:
            faults = self.read() if version else []
        except UserError as error:
            _log.error("the faults stay as they are: %s", error)
            return None
        _log.info("%s from %s", plural(len(faults), "fault"), self._path)
        return faults

    def _stat(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns


def parse_fault(text: str) -> Fault:
    """Return the rule that `text` is, as SYNTAX says: `read:lba=100-200:error`.

    Raises ValueError, in words for the user.
    """
    operation, *conditions = text.strip().split(":")
    if operation not in OPERATIONS and operation != _ANY:
        raise ValueError(f"'{operation}' is not an operation: {', '.join(OPERATIONS)} or {_ANY}")
    if not conditions:
        raise ValueError(f"'{text}' says nothing to do; write it as {SYNTAX}")
    *conditions, action = conditions
    fault = replace(_parse_action(action), type=OPERATIONS.get(operation))
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name == "lba":
            fault = replace(fault, sectors=_parse_sectors(value))
        elif name == "times":
            fault = replace(fault, times=_parse_times(value))
        else:
            raise ValueError(f"'{condition}' is not a condition: lba=FIRST-LAST or times=N")
    return fault


def parse_faults(text: str) -> list[Fault]:
    """Return the rules in a text: one a line, empty lines and what follows a # aside.

    Raises ValueError, in words for the user.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [parse_fault(line) for line in lines if line]


def _parse_action(text: str) -> Fault:
    name, _, value = text.partition("=")
    if name == "latency":
        return Fault(Action.LATENCY, seconds=parse_time(value))
    try:
        return Fault(Action(text))
    except ValueError:
        raise ValueError(f"'{text}' is not an action: error, unsupported, stuck or latency=TIME") from None


def _parse_sectors(text: str) -> range:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"'{text}' are not sectors; write them as 100-200, or 100 for one")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _parse_times(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"'{text}' is not a number of times")
    return int(text)

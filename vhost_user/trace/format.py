"""Formats of a trace's events: text for people, or JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum, Flag
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from protocol.vhost_user import payload_fields
from protocol.vhost_user.feature_names import DEVICE_FEATURES, names_of, short_name
from vhost_user.trace.events import Message, Side

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.fds import OwnedFd
    from protocol.vhost_user.feature_names import FeatureNames
    from vhost_user.trace.events import Event, Note

Format: TypeAlias = "Callable[[Event], str]"
"""A format: returns the line for an event."""

SHOWN_BYTES = 64
"""Most bytes that are shown of a payload that could not be decoded."""

DEVICE_TYPES = {short_name(device).lower(): device for device in DEVICE_FEATURES}
"""The device types whose feature bits have names, by their names on command lines."""


class Text:
    """Lines for people: seconds since the trace began, connection, sender, message."""

    def __init__(self, start: float, device: str = "") -> None:
        """`start` is when the trace began, in seconds since the epoch; `device` is one of DEVICE_TYPES."""
        self._start = start
        self._names = _names(device)

    def __call__(self, event: Event) -> str:
        """Return the line for `event`."""
        says = _message_text(event, self._names) if isinstance(event, Message) else _note_text(event)
        return f"{event.time - self._start:11.6f} #{event.connection} {says}"


class Json:
    """JSON objects, one a line, with everything that is known of an event."""

    def __init__(self, device: str = "") -> None:
        """`device` is one of DEVICE_TYPES."""
        self._names = _names(device)

    def __call__(self, event: Event) -> str:
        """Return the line for `event`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(event.time, UTC).isoformat(timespec="microseconds"),
            "connection": event.connection,
        }
        entry |= _message_entry(event, self._names) if isinstance(event, Message) else _note_entry(event)
        return json.dumps(entry)


def _message_text(event: Message, names: FeatureNames | None) -> str:
    arrow = ">" if event.sender is Side.FRONTEND else "<"
    where = "channel " if event.channel else ""
    text = _name_bits(event, event.observed.text, names)
    if event.frame.fds:
        text += f" ({', '.join(map(describe_fd, event.frame.fds))})"
    if event.observed.message is None and event.frame.payload:
        text += f" {_hex(event.frame.payload)}"
    if event.seconds is not None:
        text += f" [{event.seconds * 1000:.3f} ms]"
    if event.observed.problem:
        text += f" (wrong: {event.observed.problem})"
    return f"{where}{arrow} {text}"


def _names(device: str) -> FeatureNames | None:
    return names_of(DEVICE_TYPES[device]) if device else None


def _name_bits(event: Message, text: str, names: FeatureNames | None) -> str:
    """Name the bits of the device's own type in `text`, if the message has a word of features."""
    return text if names is None else names.explain_message(text, event.observed.message)


def _note_text(event: Note) -> str:
    return f"- {event.text}" + (f" {_hex(event.data)}" if event.data else "")


def _hex(data: bytes) -> str:
    return data[:SHOWN_BYTES].hex(" ") + ("..." if len(data) > SHOWN_BYTES else "")


def _message_entry(event: Message, names: FeatureNames | None) -> dict[str, Any]:
    frame, observed = event.frame, event.observed
    about = observed.request or observed.message
    return {
        "from": str(event.sender),
        "channel": event.channel,
        "kind": "reply" if event.is_reply else "request",
        "message": about.label if about else None,
        "text": _name_bits(event, observed.text, names),
        "number": frame.number,
        "flags": frame.flags,
        "fields": _fields(event, names),
        "fds": [describe_fd(fd) for fd in frame.fds],
        "payload": frame.payload.hex(),
        "seconds": event.seconds,
        "problem": observed.problem or None,
    }


def _fields(event: Message, names: FeatureNames | None) -> dict[str, object]:
    message = event.observed.message
    values = (
        {}
        if message is None
        else {each.name: _plain(getattr(message, each.name)) for each in payload_fields(type(message))}
    )
    return {
        name: _name_bits(event, value, names) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _note_entry(event: Note) -> dict[str, Any]:
    return {"note": event.text} | ({"data": event.data.hex()} if event.data else {})


def _plain(value: object) -> object:
    if isinstance(value, Flag):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in asdict(value).items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, int | None) else str(value)


def describe_fd(fd: OwnedFd) -> str:
    """Return a few words on an open file; of an eventfd its number, by which it is recognised again."""
    try:
        name = str(Path(f"/proc/self/fd/{fd.fileno()}").readlink())
        if name == "anon_inode:[eventfd]":
            return f"eventfd {_eventfd_id(fd)}".strip()
    except OSError:
        return "?"
    return name.removesuffix(" (deleted)").removeprefix("/memfd:").removeprefix("anon_inode:")


def _eventfd_id(fd: OwnedFd) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd.fileno()}").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith("eventfd-id:")), "")

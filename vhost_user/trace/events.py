"""The events of a trace: messages, and notes on everything else that happens."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from protocol.vhost_user import Frame, Observed


class Side(StrEnum):
    """The sender of a message."""

    FRONTEND = "front-end"
    BACKEND = "back-end"

    @property
    def other(self) -> Side:
        """The side that it talks to."""
        return Side.FRONTEND if self is Side.BACKEND else Side.BACKEND


@dataclass(frozen=True)
class Message:
    """A message, before it is passed on."""

    connection: int
    sender: Side
    channel: bool
    """True on the socket for the back-end's own requests."""
    frame: Frame
    """The message as it came; its descriptors are open only until the sink returns."""
    observed: Observed
    is_reply: bool
    seconds: float | None
    """Of a reply: seconds since its request."""
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Note:
    """An event that is not a message, in one line."""

    connection: int
    text: str
    data: bytes = b""
    """Bytes that were passed on and are not a message."""
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""


Event: TypeAlias = Message | Note
"""What a trace sink is given."""

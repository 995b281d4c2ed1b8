"""Console devices: features, configuration, control messages (virtio 1.3, section 5.3).

Everything is little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from construct import Int16ul, Int32ul, Struct

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.bits import Bits
from protocol.virtio.config_space import ConfigSpace

CONTROL_RECEIVEQ = 2
"""The queue for the device's control messages (section 5.3.2)."""
CONTROL_TRANSMITQ = 3
"""The queue for the driver's control messages."""


class ConsoleFeature(Bits):
    """Feature bits of console devices (section 5.3.3)."""

    NONE = 0
    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


def receiveq(port: int) -> int:
    """Return the number of the queue with a port's data for the driver (section 5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


def transmitq(port: int) -> int:
    """Return the number of the queue with a port's data from the driver."""
    return receiveq(port) + 1


def port_of(queue: int) -> int:
    """Return the port of a queue that is not one of the two for control messages."""
    return 0 if queue < CONTROL_RECEIVEQ else queue // 2 - 1


def queues(max_ports: int) -> int:
    """Return the number of queues of a device with at most `max_ports` ports."""
    return 2 * max_ports + 2


@dataclass(frozen=True)
class ConsoleConfig(ConfigSpace):
    """The configuration space (section 5.3.4). `cols` and `rows` are those of port 0; 0 is unknown.

    `emerg_wr` is only written, by the driver: its lower byte is a character to print at once.
    """

    owner = "a console"
    layout = Struct("cols" / Int16ul, "rows" / Int16ul, "max_nr_ports" / Int32ul, "emerg_wr" / Int32ul)

    cols: int = 0
    rows: int = 0
    max_nr_ports: int = 1
    emerg_wr: int = 0


CONFIG_SIZE: int = ConsoleConfig.layout.sizeof()
EMERG_WR_OFFSET = 8
"""Offset of `emerg_wr`."""


class ControlEvent(IntEnum):
    """Events of control messages (section 5.3.6.2)."""

    DEVICE_READY = 0
    """From the driver: it is ready for messages (value 1), or failed (0)."""
    DEVICE_ADD = 1
    """From the device: there is a new port."""
    DEVICE_REMOVE = 2
    """From the device: the port is removed."""
    PORT_READY = 3
    """From the driver: it can use the port (1), or cannot (0)."""
    CONSOLE_PORT = 4
    """From the device: the port is a console."""
    RESIZE = 5
    """From the device: the size of the console; columns and rows follow."""
    PORT_OPEN = 6
    """From either side: its end of the port is open (1), or closed (0)."""
    PORT_NAME = 7
    """From the device: the name of the port follows, in UTF-8, without NUL."""


NO_PORT = 0xFFFF_FFFF
"""The port in messages that are not about a port, as in Linux."""

CONTROL = struct.Struct("<IHH")
"""A control message's port, event and value."""

RESIZE = struct.Struct("<HH")
"""The data of RESIZE: columns, rows. Many versions of Linux read them as rows, columns."""


@dataclass(frozen=True)
class ControlMessage:
    """A control message (section 5.3.6.2); `extra` is the data after it."""

    port: int
    event: int
    value: int = 0
    extra: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes. Raises LocalProtocolError for a field that does not fit."""
        try:
            return CONTROL.pack(self.port, self.event, self.value) + self.extra
        except struct.error as error:
            raise LocalProtocolError(f"{self} does not fit into a control message: {error}") from None

    @classmethod
    def decode(cls, data: bytes) -> ControlMessage:
        """Return the message in a buffer. Raises RemoteProtocolError if the buffer is too short."""
        if len(data) < CONTROL.size:
            raise RemoteProtocolError(f"{len(data)} bytes are not a control message, of {CONTROL.size}")
        port, event, value = CONTROL.unpack_from(data)
        return cls(port, event, value, data[CONTROL.size :])

    def __str__(self) -> str:
        try:
            name = ControlEvent(self.event).name
        except ValueError:
            name = f"event {self.event}"
        return f"{name} port={self.port} value={self.value}"

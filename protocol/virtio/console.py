"""Console devices: features, configuration space, control messages (virtio 1.2, section 5.3).

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
"""The queue for control messages of the device (section 5.3.2)."""
CONTROL_TRANSMITQ = 3
"""The queue for control messages of the driver."""


class ConsoleFeature(Bits):
    """Feature bits of console devices (section 5.3.3)."""

    NONE = 0
    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


def receiveq(port: int) -> int:
    """Return the number of the queue by which a port's data comes to the driver (section 5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


def transmitq(port: int) -> int:
    """Return the number of the queue by which a port's data comes from the driver."""
    return receiveq(port) + 1


def port_of(queue: int) -> int:
    """Return the port that a queue belongs to, which is none of the two for control messages."""
    return 0 if queue < CONTROL_RECEIVEQ else queue // 2 - 1


def queues(max_ports: int) -> int:
    """Return how many queues a device has that has so many ports at most."""
    return 2 * max_ports + 2


@dataclass(frozen=True)
class ConsoleConfig(ConfigSpace):
    """The configuration space (section 5.3.4). `cols` and `rows` are those of port 0; 0 is unknown.

    The driver only writes `emerg_wr`, whose lower byte is a character to be put out at once.
    """

    owner = "a console"
    layout = Struct("cols" / Int16ul, "rows" / Int16ul, "max_nr_ports" / Int32ul, "emerg_wr" / Int32ul)

    cols: int = 0
    rows: int = 0
    max_nr_ports: int = 1
    emerg_wr: int = 0


CONFIG_SIZE: int = ConsoleConfig.layout.sizeof()
EMERG_WR_OFFSET = 8
"""Where `emerg_wr` is."""


class ControlEvent(IntEnum):
    """What a control message tells (section 5.3.6.2)."""

    DEVICE_READY = 0
    """From the driver: it takes messages (value 1), or cannot be used (0)."""
    DEVICE_ADD = 1
    """From the device: there is a new port."""
    DEVICE_REMOVE = 2
    """From the device: a port is gone."""
    PORT_READY = 3
    """From the driver: it can use a port (1), or not (0)."""
    CONSOLE_PORT = 4
    """From the device: a port is a console."""
    RESIZE = 5
    """From the device: the size of a console; columns and rows follow."""
    PORT_OPEN = 6
    """From either: its end of a port is open (1), or closed (0)."""
    PORT_NAME = 7
    """From the device: the name of a port follows, in UTF-8 and with no NUL at its end."""


NO_PORT = 0xFFFF_FFFF
"""The port in messages that concern none, as Linux has it."""

CONTROL = struct.Struct("<IHH")
"""A control message's port, event and value."""

RESIZE = struct.Struct("<HH")
"""What follows for RESIZE: columns, rows. Many versions of Linux take them for rows, columns."""


@dataclass(frozen=True)
class ControlMessage:
    """A control message (section 5.3.6.2); `extra` is what follows it."""

    port: int
    event: int
    value: int = 0
    extra: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes. Raises LocalProtocolError for a field that does not fit."""
        try:
            return CONTROL.pack(self.port, self.event, self.value) + self.extra
        except struct.error as error:
            raise LocalProtocolError(f"{self} does not fit a control message: {error}") from None

    @classmethod
    def decode(cls, data: bytes) -> ControlMessage:
        """Return the message that a buffer holds. Raises RemoteProtocolError where it is too short."""
        if len(data) < CONTROL.size:
            raise RemoteProtocolError(f"{len(data)} bytes are no control message, which has {CONTROL.size}")
        port, event, value = CONTROL.unpack_from(data)
        return cls(port, event, value, data[CONTROL.size :])

    def __str__(self) -> str:
        try:
            name = ControlEvent(self.event).name
        except ValueError:
            name = f"event {self.event}"
        return f"{name} port={self.port} value={self.value}"

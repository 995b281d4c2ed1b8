"""The calls that change a socket device while its guest runs, and its events."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from vhost_user.devices.vsock.ports import check_port
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from vhost_user.devices.vsock.connection_table import ConnectionTable
    from vhost_user.devices.vsock.stream import Stream


class Answer(Enum):
    """What the guest gets that connects to a port."""

    NORMAL = "normal"
    REFUSED = "refused"
    IGNORED = "ignored"


class Device(Protocol):
    """The device as it is seen from here."""

    table: ConnectionTable

    def reset_transport(self) -> None:
        """End all connections, as a migration does."""


class VsockSimulation(Simulation):
    """The connections of one guest: which there are, which are refused, which end when they should not."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        self._answers: dict[int, Answer] = {}

    def answer(self, port: int) -> Answer:
        """Return what the guest gets that connects to `port`, of the host or of another guest."""
        return self._answers.get(port, Answer.NORMAL)

    def on_change(self, event: str, stream: Stream) -> None:
        """Tell of a connection that was opened, closed or refused."""
        self.emit(event, connection=name_of(stream))

    @call
    def connections(self) -> list[str]:
        """List the connections: our end, the guest's port, and how far they are: "2:1024-5000 open"."""
        return [f"{name_of(stream)} {stream.connection.state.value}" for stream in self._device.table.streams]

    @call
    def reset(self, connection: str) -> None:
        """End a connection at once, as if it had failed: "2:1024-5000"."""
        for stream in self._device.table.streams:
            if name_of(stream) == connection:
                stream.reset()
                return
        raise CallError(f"there is no connection '{connection}'; 'connections' lists them")

    @call
    def refuse(self, port: int) -> None:
        """Refuse the guest's connections to a port, whoever listens there."""
        self._answers[check_port(port)] = Answer.REFUSED

    @call
    def ignore(self, port: int) -> None:
        """Do not answer the guest's connections to a port: the guest waits until it has waited enough."""
        self._answers[check_port(port)] = Answer.IGNORED

    @call
    def allow(self, port: int) -> None:
        """Undo 'refuse' and 'ignore'."""
        self._answers.pop(check_port(port), None)

    @call
    def reset_transport(self) -> None:
        """End all connections at once, as a migration does."""
        self._device.reset_transport()


def name_of(stream: Stream) -> str:
    """Return what a connection is called: our end, and the guest's port."""
    return f"{stream.connection.own}-{stream.connection.peer.port}"

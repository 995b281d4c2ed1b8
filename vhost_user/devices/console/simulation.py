"""A console from a script: what Python and clients of --control read and type."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.program.command_line import UserError
from protocol.program.units import Seconds  # noqa: TC001 -- calls are made by it
from protocol.words import plural
from vhost_user.devices.console.port import TRANSCRIPT_LIMIT
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from vhost_user.devices.console.port import ConsolePort

EXPECT_SECONDS = 60.0
"""How long to wait for what is expected, by default."""

_SHOWN_BYTES = 200


class PortSimulation(Simulation):
    """One port. Events: `guest` (with `open`, as the guest opens and closes it), `host` likewise."""

    def __init__(self, name: str, port: ConsolePort) -> None:
        """Be the host's end of `port`, beside what else is there."""
        super().__init__()
        self.name = name
        self.port = port
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        port.callbacks.guest_opened = lambda is_open: self.emit("guest", open=is_open)
        port.callbacks.host_opened = lambda is_open: self.emit("host", open=is_open)

    @call
    def send(self, text: str) -> None:
        """Type `text`; it waits for a guest that is not there yet."""
        data = text.encode()
        if not self.port.has_room_for_input(len(data)):
            raise CallError(
                f"port {self.name} has no room for {plural(len(data), 'byte')} more: the guest does not read"
            )
        self.port.put_input_now(data)

    @call
    def send_line(self, text: str) -> None:
        """Type `text` and Enter."""
        self.send(f"{text}\r" if self.port.state.is_console else f"{text}\n")

    @call
    async def write(self, data: bytes) -> None:
        """Send bytes, however many, once there is room for them."""
        await self.port.put_input(data)

    @call
    def read(self) -> str:
        """Return the output that was neither read nor expected yet, as text."""
        return self._decoder.decode(self.read_bytes())

    @call
    def read_bytes(self) -> bytes:
        """Return the output that was neither read nor expected yet."""
        return self._take(TRANSCRIPT_LIMIT)

    @call
    async def expect(self, text: str, seconds: Seconds = EXPECT_SECONDS) -> str:
        """Wait until `text` is put out; return the output up to its end."""
        return await self._until(re.compile(re.escape(text.encode())), text, seconds)

    @call
    async def expect_regex(self, pattern: str, seconds: Seconds = EXPECT_SECONDS) -> str:
        """Wait for output that the regular expression describes; return the output up to its end."""
        try:
            compiled = re.compile(pattern.encode(), re.MULTILINE)
        except re.error as error:
            raise CallError(f"'{pattern}' is not a regular expression: {error}") from None
        return await self._until(compiled, pattern, seconds)

    @call
    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest how large the console is."""
        if not self.port.state.is_console:
            raise CallError(f"port {self.name} is not a console; only a console has a size")
        self.port.resize(columns, rows)

    @call
    def open(self) -> None:
        """Open the host's end, after `close`."""
        if self.port.host is not None:
            raise CallError(f"port {self.name} is open while somebody uses {self.port.host}")
        self.port.host_opened()

    @call
    def close(self) -> None:
        """Close the host's end: part from the client of a socket, or show the guest that no one is there."""
        if self.port.host is None:
            self.port.host_closed()
        elif not self.port.host.hang_up():
            raise CallError(f"port {self.name}: {self.port.host} cannot be closed from here")

    @call
    def status(self) -> dict[str, object]:
        """Tell who has it open, its size, and how many bytes wait for whom."""
        port = self.port
        return {
            "host": None if port.host is None else str(port.host),
            "host_open": port.state.host_open,
            "guest_open": port.state.guest_open,
            "size": port.state.size,
            "for_guest": port.input_size,
            "for_host": len(port.output),
            "dropped": port.output.dropped,
        }

    def _take(self, size: int) -> bytes:
        data = self.port.transcript.peek(size)
        self.port.read_transcript(len(data))
        return data

    async def _until(self, pattern: re.Pattern[bytes], wanted: str, seconds: float) -> str:
        """Take the output up to the end of what is wanted. Raises CallError where it does not come."""
        with trio.move_on_after(seconds):
            while not (match := pattern.search(self.port.transcript.peek(TRANSCRIPT_LIMIT))):
                await self.port.changed.park()
            return self._take(match.end()).decode(errors="replace")
        tail = self.port.transcript.peek(TRANSCRIPT_LIMIT)[-_SHOWN_BYTES:].decode(errors="replace")
        raise CallError(f"port {self.name} has not put out {wanted!r} within {seconds:g} s, but {tail!r}")


class Pluggable(Protocol):
    """A console device, as its simulation sees it."""

    def add_port(self, name: str, host: str = "none", *, console: bool = False) -> PortSimulation:
        """Plug a port in. Raises ValueError, UserError."""

    async def remove_port(self, name: str) -> None:
        """Unplug a port. Raises KeyError."""

    def number_of(self, name: str) -> int:
        """Return the number of a port. Raises KeyError."""


class ConsoleSimulation(Simulation):
    """The device: its ports are the parts, by their names. Events: `added` and `removed`, with `name`."""

    def __init__(self, console: Pluggable) -> None:
        super().__init__()
        self._console = console

    @call
    def add_port(self, name: str, host: str = "none", console: bool = False) -> int:
        """Plug a port in; `host` is what --port takes behind the name. Returns its number."""
        try:
            part = self._console.add_port(name, host, console=console)
        except UserError as error:
            raise CallError(str(error)) from None
        return self._console.number_of(part.name)

    @call
    async def remove_port(self, name: str) -> None:
        """Unplug a port."""
        try:
            await self._console.remove_port(name)
        except KeyError:
            raise CallError(f"there is no port '{name}'; there are {', '.join(self.parts)}") from None

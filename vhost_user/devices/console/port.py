"""A port of a console device: its data in both directions, and who has it open.

How it works: a port is shared by the task of its host side (`host`), by scripts (`simulation`) and by the
tasks of its two queues (`device`), all in one thread. Data waits in three places: `_input` for the guest,
`output` for the host side, `transcript` for scripts, which is `output` itself where there is no host side.
Each has a limit; who fills one waits, or, where it does not block, the oldest bytes are dropped. Whoever
changes something unparks `changed`, and each task that waits looks again at its condition.

The host's end is open, closed, or closing: whoever left has left bytes that the guest has not read yet, and
the guest is told of the end once it has read them, has closed the port, or somebody else opens it. What is
on its way survives a front-end that leaves, and is lost with the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.devices.console.control import PortState

BACKLOG = 65536
"""How many bytes of the guest's wait for a reader, by default."""
INPUT_LIMIT = 65536
"""How many bytes of the host's wait for the guest, at most: what comes then has to wait outside."""
TRANSCRIPT_LIMIT = 1 << 20
"""How many bytes of output a script may be behind, beside a host side that gets them all."""


class Backlog:
    """Bytes of the guest's that were not taken yet, at most about `limit` of them.

    One that `blocks` asks its writer to wait when it is full; another drops its oldest bytes.
    """

    def __init__(self, limit: int, *, blocks: bool) -> None:
        self._data = bytearray()
        self._limit = limit
        self._blocks = blocks
        self.dropped = 0
        """How many bytes were dropped so far."""

    def __len__(self) -> int:
        return len(self._data)

    @property
    def has_room(self) -> bool:
        """False where a writer has to wait."""
        return not self._blocks or len(self._data) < self._limit

    def append(self, data: bytes) -> None:
        """Add bytes, which may make one that blocks exceed its limit once."""
        self._data += data
        surplus = len(self._data) - self._limit
        if surplus > 0 and not self._blocks:
            self.dropped += surplus
            del self._data[:surplus]

    def put_back(self, data: bytes) -> None:
        """Put bytes back before all others: they were not read after all. One that drops may drop them."""
        self._data[:0] = data
        self.append(b"")

    def peek(self, size: int = BACKLOG) -> bytes:
        """Return the first bytes; `consume()` takes them away."""
        return bytes(self._data[:size])

    def consume(self, size: int) -> None:
        """Take the first `size` bytes away."""
        del self._data[:size]


@dataclass
class Callbacks:
    """Whom a port tells of what changes: the driver of ends and size, others of who has it open."""

    tell: Callable[[], None] = lambda: None
    resized: Callable[[], None] = lambda: None
    guest_opened: Callable[[bool], None] = lambda _: None
    host_opened: Callable[[bool], None] = lambda _: None


class HostSide(Protocol):
    """The host's end of a port."""

    async def run(self, port: ConsolePort) -> None:
        """Move bytes, and tell the port who comes and goes, until cancelled."""

    def hang_up(self) -> bool:
        """Part from who is connected; False where that cannot be."""

    def close(self) -> None:
        """Release everything; `run()` has ended, or never began."""


class ConsolePort:
    """One port. Its device moves the guest's data, its host side and scripts are at the other end."""

    def __init__(
        self,
        state: PortState,
        host: HostSide | None = None,
        *,
        blocks: bool | None = None,
        backlog: int = BACKLOG,
    ) -> None:
        """Put `host` at the other end, owned by the port now; None: only scripts are there.

        Up to `backlog` bytes wait for the host. Then the guest waits, if the port `blocks`, or the oldest
        are dropped: by default for consoles, as a guest's kernel stands still while its console does.
        """
        blocks = not state.is_console if blocks is None else blocks
        self.state = state
        self.host = host
        self.callbacks = Callbacks()
        self.changed = trio.lowlevel.ParkingLot()
        """Unparked when something has changed that somebody may wait for."""
        self.output = Backlog(backlog, blocks=blocks)
        """What the host side has yet to take."""
        self.transcript = self.output if host is None else Backlog(TRANSCRIPT_LIMIT, blocks=False)
        """What scripts have yet to read."""
        self._input = bytearray()
        self._is_closing = False
        state.host_open = host is None

    # The guest's end

    @property
    def has_input(self) -> bool:
        """True where there is something for the guest, which is there to get it."""
        return bool(self._input) and self.state.guest_open

    def take_input(self, size: int) -> bytes:
        """Return up to `size` bytes for the guest."""
        data = bytes(self._input[:size])
        del self._input[:size]
        if not self._input:
            self._finish_closing()
        self.changed.unpark_all()
        return data

    @property
    def has_room(self) -> bool:
        """False where the guest has to wait until somebody reads."""
        return self.output.has_room

    def put_output(self, data: bytes) -> None:
        """Take bytes from the guest."""
        self.output.append(data)
        if self.transcript is not self.output:
            self.transcript.append(data)
        self.changed.unpark_all()

    def guest_changed(self) -> None:
        """Note that the guest has opened or closed it, as `state` says."""
        if not self.state.guest_open:
            self._finish_closing()
        self.callbacks.guest_opened(self.state.guest_open)
        self.changed.unpark_all()

    # The host's end

    async def put_input(self, data: bytes) -> None:
        """Hand bytes to the guest, once there is room for more of them."""
        for start in range(0, len(data), INPUT_LIMIT):
            await self.until_room_for_input()
            self.put_input_now(data[start : start + INPUT_LIMIT])

    def put_input_now(self, data: bytes) -> None:
        """Hand bytes to the guest, room or not."""
        self._input += data
        self.changed.unpark_all()

    @property
    def input_size(self) -> int:
        """How many bytes wait for the guest."""
        return len(self._input)

    def has_room_for_input(self, size: int = 1) -> bool:
        """Tell whether so many bytes more may wait for the guest."""
        return len(self._input) + size <= INPUT_LIMIT

    async def until_room_for_input(self) -> None:
        """Wait until more bytes may wait for the guest."""
        while not self.has_room_for_input():
            await self.changed.park()

    async def until_output(self) -> None:
        """Wait until there is something in `output`."""
        while not self.output:
            await self.changed.park()

    def taken(self, size: int) -> None:
        """Take the first `size` bytes of `output` away, which the host has got."""
        self.output.consume(size)
        self.changed.unpark_all()

    def put_output_back(self, data: bytes) -> None:
        """Put `data` back at the front of `output`: whom the host gave it to left without reading it."""
        self.output.put_back(data)
        self.changed.unpark_all()

    def read_transcript(self, size: int) -> None:
        """Take the first `size` bytes of `transcript` away, which a script has got."""
        self.transcript.consume(size)
        self.changed.unpark_all()

    def host_opened(self) -> None:
        """Tell the guest that somebody is there. One that was about to leave has left then."""
        self._finish_closing()
        self._set_host_open(True)

    def host_closed(self) -> None:
        """Tell the guest that no one is there, once it has what was left for it."""
        if self._input and self.state.guest_open:
            self._is_closing = True
        else:
            self._set_host_open(False)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest how large the console is. Raises ValueError for what no console is."""
        if not (0 < columns < 1 << 16 and 0 < rows < 1 << 16):
            raise ValueError(f"a console cannot have {columns} columns and {rows} rows; give 1 to 65535")
        self.state.size = columns, rows
        self.callbacks.resized()

    def _finish_closing(self) -> None:
        if self._is_closing:
            self._is_closing = False
            self._set_host_open(False)

    def _set_host_open(self, is_open: bool) -> None:
        if is_open == self.state.host_open:
            return
        self.state.set_host_open(is_open)
        self.callbacks.host_opened(is_open)
        self.callbacks.tell()
        self.changed.unpark_all()

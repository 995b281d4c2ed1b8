"""Refusals: clients that cannot join are told why, and keep their connections."""

# How it works: a refused client is in `_refused`, and has a task that waits until it leaves; that task
# closes its stream. Where too many are held, or no descriptor is left for another one, the one that was
# refused first is closed. Spare descriptors are open for that alone: at the limit of open files one is
# closed to accept a client that is refused, and is opened again when a refused client has gone.

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from protocol.ivshmem import Refusal, ServerSession

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from protocol.io import FdStream, Listener

MAX_REFUSED = 64
"""How many refused clients may hold their connection; of more, the one refused first is closed."""

SHOWN_GROUPS = 32
"""How many groups of a refused client a line of the log tells; its "groups" in JSON are all."""

SPARE_DESCRIPTORS = 8
"""How many clients can be refused at once, and hold their connections, at the limit of open files."""

ACCEPT_RETRY_SECONDS = 0.1
"""How long a connection waits that cannot even be accepted to be refused."""

_log = logging.getLogger("ivshmem_server")


class Refusals:
    """The refused clients of one server, and the descriptors to refuse others with. Close it in the end."""

    def __init__(self, counters: Counter[str]) -> None:
        """Count refusals by their reasons in `counters`."""
        self._counters = counters
        self._refused: dict[FdStream, None] = {}
        self._spares: list[OwnedFd] = []
        self._fill_spares()

    def close(self) -> None:
        """Close the spare descriptors; the tasks close the streams."""
        for spare in self._spares:
            spare.close()

    def refuse(self, stream: FdStream, reason: Refusal, nursery: trio.Nursery) -> None:
        """Tell a client why it cannot join, log that, and hold its connection in a task of `nursery`."""
        who = stream.peer_credentials()
        groups = stream.peer_groups()
        name = reason.name.lower()
        self._counters[f"refused: {name}"] += 1
        text = f"pid {who.pid}, uid {who.uid}, gid {who.gid}, {_groups_text(groups)}"
        fields = {"event": "refused", "reason": name, **who._asdict(), "groups": groups}
        _log.warning("refused %s: %s", text, reason.text, extra=fields)
        session = ServerSession()
        session.refuse(reason)
        with contextlib.suppress(OSError):  # it may have gone already
            send_queued(stream, session)
            stream.send_eof()
        self._hold(stream, nursery)

    def _hold(self, stream: FdStream, nursery: trio.Nursery) -> None:
        """Leave it to a refused client to close its connection.

        A QEMU into which a device is plugged connects first, and reads the refusal when the device
        comes: where the connection is closed by then, the refusal is lost and QEMU spins for ever.
        """
        if len(self._refused) >= MAX_REFUSED:
            self._close_first_refused()
        self._refused[stream] = None
        nursery.start_soon(self._see_off, stream)

    async def _see_off(self, stream: FdStream) -> None:
        """Wait until a refused client has gone, and close its connection."""
        try:
            with stream, contextlib.suppress(OSError, trio.ClosedResourceError):
                await stream.receive(1, max_fds=0)
        finally:
            self._refused.pop(stream, None)
            self._fill_spares()

    def _close_first_refused(self) -> None:
        first = next(iter(self._refused))
        del self._refused[first]
        first.close()

    async def refuse_at_limit(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Refuse a client at the limit of open files, with a spare descriptor or a refused client's.

        It holds its connection as any other that is refused: see `_hold()`.
        """
        if self._spares:
            self._spares.pop().close()
        elif self._refused:
            self._close_first_refused()
        try:
            stream = listener.accept_nowait()
        except OSError:
            await trio.sleep(ACCEPT_RETRY_SECONDS)
            self._fill_spares()
        else:
            self.refuse(stream, Refusal.NO_RESOURCES, nursery)

    def _fill_spares(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spares) < SPARE_DESCRIPTORS:
                self._spares.append(OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)))


def _groups_text(groups: Sequence[int]) -> str:
    """Return the groups of a client for a line of the log, which has room for some."""
    if not groups:
        return "no other groups"
    shown = ", ".join(map(str, groups[:SHOWN_GROUPS]))
    more = f" and {len(groups) - SHOWN_GROUPS} more" if len(groups) > SHOWN_GROUPS else ""
    return f"groups {shown}{more}"


def send_queued(stream: FdStream, session: ServerSession) -> None:
    """Send until nothing is left. Raises OSError; BlockingIOError where the socket is full."""
    while (message := session.next_message()) is not None:
        # Eight bytes of a UNIX stream socket go whole or not at all: the kernel never splits a page.
        stream.send_nowait(message.buffers, message.ancillary)
        session.sent()

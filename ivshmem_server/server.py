"""IvshmemServer: hands clients the shared memory and the eventfds that ring the others.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem server".
"""

# How it works: one task accepts, and one task a client waits for its end (`_watch`). All state changes in
# whichever of them runs, between two awaits, so that it needs no lock. A client is in one of these states:
#
#   admitted      it is in `_clients`, and its session has messages queued or not
#   blocked       its socket is full: `_drain`, a task of its own, is the only one that sends to it
#   doomed        it is in `_doomed` as well, with the reason; the next `_settle()` disconnects it
#   disconnected  its stream is closed, its id given back, and the others have its leave queued
#   refused       it was never a client: it is in `refusals`, and holds its connection until it leaves
#
# `_settle()` is the one place that sends to clients that are not blocked. Sending may find further clients
# that have gone, whose leave the others are to be told: so it goes on until none is doomed. Nothing is
# awaited in it, so that no client sees a join and a leave in another order than the others do.
#
# Descriptors: the stream of a client is closed by `_disconnect()`, that of a refused client by `refusals`.
# The registry owns the eventfds, and closes those of an id that has left, but for the slots of a sticky
# server. The memory and the listener are the caller's.
#
# A crash closes every stream. Clients go on with the memory and the eventfds that they were passed, and ring
# each other; they never hear of a peer again. What the next server knows of them is in `id_mark`.

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ivshmem_server.id_supply import IdSupply
from ivshmem_server.refusals import Refusals, send_queued
from protocol.io.eventfd import EventFd, drain
from protocol.io.exhaustion import is_exhausted
from protocol.io.stream import RETRY_SECONDS, AncillaryLostError, Credentials
from protocol.ivshmem import IdsExhaustedError, Refusal, Registry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ivshmem_server.memory import SharedMemory
    from protocol.io import FdStream, Listener
    from protocol.ivshmem import Member

DEFAULT_MAX_PEERS = 65536
DEFAULT_MAX_QUEUED = 65536

ACCEPT_BATCH = 16
"""How many clients to admit before everybody is told of them."""

_TALKED = "it sent something, and the protocol is one-way"

_log = logging.getLogger("ivshmem_server")


class Client:
    """A connected client, as the server knows it. Read its fields; change nothing."""

    __slots__ = ("blocked", "credentials", "member", "since", "stream")

    def __init__(self, stream: FdStream, member: Member, credentials: Credentials) -> None:
        self.stream = stream
        self.member = member
        self.credentials = credentials
        self.since = time.time()
        self.blocked = False
        """A task waits until the client reads; no other task sends to it."""

    def __str__(self) -> str:
        return f"peer {self.member.id} (pid {self.credentials.pid}, uid {self.credentials.uid})"


class IvshmemServer:
    """An ivshmem server over one shared memory.

    ::

        with SharedMemory.memfd(1 << 20) as memory, listen("/tmp/sock") as listener:
            await IvshmemServer(memory, vectors=2).serve(listener)

    Any number of servers may run in one process, each with its own memory and listener. A client
    that sends anything, stops reading for too long or dies is disconnected, logged with the reason,
    and no other client is hurt; nothing that a connected client is to be told is ever left out.
    """

    def __init__(
        self,
        memory: SharedMemory,
        *,
        vectors: int = 1,
        sticky: bool = False,
        max_peers: int = DEFAULT_MAX_PEERS,
        max_queued: int = DEFAULT_MAX_QUEUED,
        allow_uids: Collection[int] = (),
        allow_gids: Collection[int] = (),
    ) -> None:
        """Serve `memory`, which stays the caller's to close.

        `vectors` (1 to 2048) is how many interrupts each client has. With `sticky`, a leave is kept
        from the others, and the next client gets the id and eventfds of the one that left. A client
        with more than `max_queued` messages unread, its own set-up apart, is disconnected. Where
        `allow_uids` or `allow_gids` is not empty, a client needs a user or a group that is in them;
        its supplementary groups count as its own, and there are no exceptions, not even for root.
        """
        self.memory = memory
        self.sticky = sticky
        self.max_peers = max_peers
        self.max_queued = max_queued
        self.counters: Counter[str] = Counter()
        """What happened since the start, how often: "joined", "messages", "refused: full" and so on."""
        self._registry = Registry(memory.fd.fileno(), vectors, sticky=sticky)
        self.ids = IdSupply(self._registry, memory)
        """How many ids are left to those who may join."""
        self._allow_uids = frozenset(allow_uids)
        self._allow_gids = frozenset(allow_gids)
        self._clients: dict[Member, Client] = {}
        self._doomed: dict[Client, str] = {}
        self._refusals = Refusals(self.counters)

    @property
    def vectors(self) -> int:
        """How many interrupt vectors each client has."""
        return self._registry.vectors

    @property
    def vacant_slots(self) -> int:
        """How many slots wait for a client to take them over (sticky servers only)."""
        return self._registry.vacant

    @property
    def clients(self) -> Iterator[Client]:
        """The connected clients, in the order they joined."""
        return iter(self._clients.values())

    async def serve(
        self, listener: Listener, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve clients of `listener`, which stays the caller's, until cancelled; call it once.

        Clients are disconnected at the end; they keep the memory and their doorbells. Raises OSError
        where the listener itself fails.
        """
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await listener.wait_readable()
                    await self._accept(listener, nursery)
        finally:
            self._close()

    def _close(self) -> None:
        for client in self._clients.values():
            client.stream.close()
        self._clients.clear()
        self._registry.close()
        self._refusals.close()

    # A client comes

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Admit those who wait, then tell everybody of all of them: one wake-up a client, not one a join."""
        exhausted = False
        try:
            for _ in range(ACCEPT_BATCH):
                self._admit(listener.accept_nowait(), nursery)
        except (BlockingIOError, ConnectionAbortedError):
            pass  # nobody waits any more, one has gone again, or another process took it
        except OSError as error:
            if not is_exhausted(error):
                raise
            exhausted = True
        self._settle(nursery)
        if exhausted:
            await self._refusals.refuse_at_limit(listener, nursery)

    def _admit(self, stream: FdStream, nursery: trio.Nursery) -> None:
        credentials = stream.peer_credentials()
        member = self._join(stream, credentials)
        if isinstance(member, Refusal):
            self._refusals.refuse(stream, member, nursery)
            return
        client = self._clients[member] = Client(stream, member, credentials)
        self._note("joined", client)
        self.ids.check(next(self.clients))
        nursery.start_soon(self._watch, client, nursery)

    def _join(self, stream: FdStream, who: Credentials) -> Member | Refusal:
        if not self._allows(stream, who):
            return Refusal.NOT_ALLOWED
        if len(self._registry) >= self.max_peers:
            return Refusal.FULL
        self.ids.refresh()
        try:
            member = self._registry.join(_make_eventfds)
        except IdsExhaustedError:
            return Refusal.IDS_EXHAUSTED
        except OSError:
            return Refusal.NO_RESOURCES
        self.ids.mark(member.id)
        if self.sticky:
            for eventfd in member.announcement.eventfds:
                drain(eventfd.fileno())  # rings that its last owner left are not for the new one
        return member

    def _allows(self, stream: FdStream, who: Credentials) -> bool:
        if not self._allow_uids and not self._allow_gids:
            return True
        if who.uid in self._allow_uids or who.gid in self._allow_gids:
            return True
        return bool(self._allow_gids) and not self._allow_gids.isdisjoint(stream.peer_groups())

    # A client goes

    async def _watch(self, client: Client, nursery: trio.Nursery) -> None:
        """Wait for the one thing a client can do: leave. The protocol has nothing for it to say."""
        try:
            data, _ = await client.stream.receive(1, max_fds=0)
            reason = _TALKED if data else ""
        except trio.ClosedResourceError:
            return  # it is disconnected already
        except AncillaryLostError:
            reason = _TALKED
        except ConnectionResetError:
            reason = ""
        except OSError as error:
            reason = str(error)
        self._doom(client, reason)
        self._settle(nursery)

    def _doom(self, client: Client, reason: str) -> None:
        """Note that `_settle()` is to disconnect the client; without a reason, it has left by itself."""
        if client.member in self._clients:  # a task that waited for it may find it disconnected already
            self._doomed.setdefault(client, reason)

    def _disconnect(self, client: Client, reason: str) -> None:
        del self._clients[client.member]
        client.stream.close()
        self._registry.leave(client.member)
        if reason:
            self._note("disconnected", client, reason)
        else:
            self._note("left", client)

    # Everybody is told

    def _settle(self, nursery: trio.Nursery) -> None:
        """Send what waits, disconnect the doomed, and repeat until no message is left to send."""
        while True:
            for client in self._clients.values():
                if client.member.session.queued:
                    self._flush(client, nursery)
            if not self._doomed:
                return
            self._disconnect(*self._doomed.popitem())

    def _flush(self, client: Client, nursery: trio.Nursery) -> None:
        if client.blocked:
            backlog = client.member.session.backlog
            if backlog > self.max_queued:
                self._doom(client, f"it leaves {backlog} messages unread (--max-queued {self.max_queued})")
        elif pause := self._send(client):
            client.blocked = True
            nursery.start_soon(self._drain, client, pause, nursery)

    async def _drain(self, client: Client, pause: _Pause | None, nursery: trio.Nursery) -> None:
        """Send to a client whose socket is full, as it reads."""
        while pause:
            try:
                await pause()
            except trio.ClosedResourceError:
                return
            if client.member not in self._clients:
                return
            pause = self._send(client)
        client.blocked = False
        self._settle(nursery)

    def _send(self, client: Client) -> _Pause | None:
        """Send what the client's socket takes; return what to wait for if that was not all."""
        session = client.member.session
        queued = session.queued
        try:
            send_queued(client.stream, session)
        except BlockingIOError:
            return client.stream.wait_writable
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                # Too many descriptors of our user are in flight; nothing tells when some are taken.
                return _retry_pause
            self._doom(client, "" if error.errno in {errno.EPIPE, errno.ECONNRESET} else str(error))
        finally:
            self.counters["messages"] += queued - session.queued
        return None

    def _note(self, event: str, client: Client, reason: str = "") -> None:
        self.counters[event] += 1
        who = client.credentials
        fields = {"event": event, "peer": client.member.id, "pid": who.pid, "uid": who.uid, "gid": who.gid}
        if reason:
            _log.warning("%s disconnected: %s", client, reason, extra=fields | {"reason": reason})
        else:
            _log.debug("%s %s", client, event, extra=fields)


_Pause = Callable[[], Awaitable[None]]


async def _retry_pause() -> None:
    await trio.sleep(RETRY_SECONDS)


def _make_eventfds(vectors: int) -> Sequence[EventFd]:
    eventfds: list[EventFd] = []
    try:
        for _ in range(vectors):
            eventfds.append(EventFd.create())
    except OSError:
        for eventfd in eventfds:
            eventfd.close()
        raise
    return eventfds

"""NetPort: the other end of a network device's cable, such as a tap or a switch.

A frame, in both directions, is the virtio-net header of `NetPort.header_size` bytes (virtio 1.3,
section 5.1.6) and the Ethernet frame behind it, in a row of buffers that are the guest's own memory.
Nothing here says how a frame is cut up: the header may be in a buffer of its own, or in several.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import trio

from protocol.virtio.net import HEADER, LEGACY_HEADER_SIZE, NetFeature
from vhost_user.buffers import copy, cut, skip
from vhost_user.own_code.containment import Containment, refuse_async

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocol.virtio.features import Feature
    from vhost_user.simulation.simulation import Simulation

_log = logging.getLogger("vhost_user.net")

MAX_FRAME = HEADER.size + 14 + 8 + 40 + 0xFFFF
"""Most bytes of a frame with its header: two VLAN tags, and as much as an IPv6 header can tell of."""

ROOM_SECONDS = 1.0
"""How long the guest may take to give room for a frame that is larger than what it has given."""


class Receiver(ABC):
    """Where the guest receives: the rx queue of one pair. Made by the device, used by the port.

    A port that reads frames whose sizes it does not know::

        buffers = receiver.window()         # the guest's own memory
        if buffers is None:                 # it has given none
            await receiver.until_room()
        count = os.readv(fd, buffers)
        receiver.fill(count)                # the frame is the guest's
        ...                                 # more frames
        receiver.flush()                    # the guest is told of all of them

    One that has a frame calls `put()`, and then `flush()`.
    """

    @abstractmethod
    def window(self) -> Sequence[memoryview] | None:
        """Return buffers for a frame of any size up to MAX_FRAME; None where the guest has given none.

        They are the guest's, and where it has given few, one of ours for the rest of a large frame.
        """

    @abstractmethod
    def room(self, size: int) -> Sequence[memoryview] | None:
        """Return buffers for a frame of `size` bytes, perhaps more; None where the guest has given too few.

        What `window()` and this return is good until `fill()` or either of them is called again.
        """

    @abstractmethod
    def fill(self, size: int) -> None:
        """Give the guest the frame that is now in the first `size` bytes of what was returned last.

        The device writes `num_buffers` into the header, counts the frame, and drops one that the
        guest's filters do not want. The port has written the rest of the header.
        """

    @abstractmethod
    def flush(self) -> None:
        """Show the guest what was filled; it is called if it wants to be."""

    @abstractmethod
    async def until_room(self, size: int = 1) -> bool:
        """Flush, and wait until there is room for a frame of `size` bytes; any number of tasks may.

        False: the guest has not given it in ROOM_SECONDS, and perhaps never will. The frame is to be
        dropped then. With the size of 1 it waits for as long as it takes.
        """

    def put(self, buffers: Sequence[memoryview], length: int) -> bool:
        """Copy a frame in, which is the only copy; call `flush()` later. False: there is no room now."""
        room = self.room(length)
        if room is None:
            return False
        copy(buffers, room, length)
        self.fill(length)
        return True


class NetPort:
    """One end of a cable. Made before its device, which owns it, and closes it.

    A subclass has at least `send()` and `receive()`.

    All methods are called in the loop's thread, and none before `set_features()`. Those that are not
    async do not block. The attributes are read whenever a front-end connects. An exception costs the
    frame that was to be sent; of `receive()`, the guest gets no frames for a second. The traceback is in
    the log, once for each place.
    """

    queue_pairs: int = 1
    """How many pairs of queues it can serve at most."""
    offloads: NetFeature = NetFeature.NONE
    """Those of HOST_OFFLOADS and GUEST_OFFLOADS that it can do. The device offers no others."""
    mtu: int | None = None
    """The MTU to advise the guest of; None: nothing is said."""
    link_up: bool = True
    """False while nothing is at the other end. Call `link_changed()` when it has changed."""
    link_changed: Callable[[], None] | None = None
    """Set by the device, which tells the guest of the link."""
    simulation: Simulation | None = None
    """The port's own calls: the part "port" of its device's simulation."""
    header_size: int = HEADER.size
    """Bytes of the header before each frame, set by `set_features()`."""
    dropped_from_guest: int = 0
    """Frames that `send()` took and lost, counted by the port."""
    dropped_to_guest: int = 0
    """Frames for the guest that found no room, counted by the port; a tap's are counted by the kernel."""

    def __init_subclass__(cls, **arguments: object) -> None:
        """Raise TypeError for an async method that is called without await."""
        super().__init_subclass__(**arguments)
        refuse_async(cls, NetPort)

    def set_features(self, features: Feature, header_size: int) -> None:
        """Note what was negotiated: both sides' headers have `header_size` bytes from now on.

        Called before queues run, and again while they run when nothing that matters here has changed.
        """
        self.header_size = header_size
        self.set_offloads(NetFeature(features))

    def set_offloads(self, features: NetFeature) -> None:
        """Note what the guest takes: frames to it may need those of GUEST_OFFLOADS in `features`.

        Called by `set_features()`, and with CTRL_GUEST_OFFLOADS at any time.
        """

    def set_link(self, up: bool) -> None:
        """Note that the guest's end of the cable was pulled out or plugged in.

        The device sees to it that no frames go through meanwhile: nothing is sent, and no
        `receive()` runs.
        """

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Send a frame of `length` bytes from the guest, header included; return True when done with it.

        The buffers are the guest's, which may change them at any time, and valid until this returns.
        They hold at least a header and 14 bytes. What cannot be sent at all is dropped and counted.
        False: not now. The device waits for `until_sendable()`, and comes again with the same frame.
        """
        raise NotImplementedError(f"{type(self).__name__} has no send()")

    def flush(self, pair: int) -> None:
        """Note that no more frames come for the moment: those who got some are to be told now."""

    async def until_sendable(self, pair: int) -> None:
        """Wait until `send()` may return True, after it has returned False."""
        await trio.lowlevel.checkpoint()

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Give frames to the guest through `receiver` for as long as this runs, until cancelled.

        Runs while the guest's rx queue `pair` does, and is used, and the link is up; it must not
        return. `receiver` must not be used afterwards.
        """
        raise NotImplementedError(f"{type(self).__name__} has no receive()")

    async def run(self) -> None:
        """Do what is to be done as long as the back-end runs, also while no front-end is connected."""

    def close(self) -> None:
        """Release what the port holds of the host."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WrappedPort(NetPort):
    """Owns the port `inner`."""

    def __init__(self, inner: NetPort) -> None:
        self.inner = inner
        self.own = Containment(_log)
        """Contains what the port within raises while it serves no request of the guest."""
        self.queue_pairs = inner.queue_pairs
        self.offloads = inner.offloads
        self.mtu = inner.mtu
        self.simulation = inner.simulation
        inner.link_changed = self._pass_link_on

    @property
    def link_up(self) -> bool:  # type: ignore[override]  # a plain attribute elsewhere
        """What the port within says."""
        return self.inner.link_up

    @property
    def dropped_from_guest(self) -> int:
        """What the port within has counted, and this one there."""
        return self.inner.dropped_from_guest

    @dropped_from_guest.setter
    def dropped_from_guest(self, value: int) -> None:
        self.inner.dropped_from_guest = value

    @property
    def dropped_to_guest(self) -> int:
        """What the port within has counted, and this one there."""
        return self.inner.dropped_to_guest

    @dropped_to_guest.setter
    def dropped_to_guest(self, value: int) -> None:
        self.inner.dropped_to_guest = value

    def set_features(self, features: Feature, header_size: int) -> None:
        """Pass it on."""
        self.header_size = header_size
        self.inner.set_features(features, header_size)

    def set_offloads(self, features: NetFeature) -> None:
        """Pass it on."""
        self.inner.set_offloads(features)

    def set_link(self, up: bool) -> None:
        """Pass it on."""
        self.inner.set_link(up)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Pass it on."""
        return self.inner.send(pair, buffers, length)

    def flush(self, pair: int) -> None:
        """Pass it on."""
        self.inner.flush(pair)

    async def until_sendable(self, pair: int) -> None:
        """Pass it on."""
        await self.inner.until_sendable(pair)

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Pass it on."""
        await self.inner.receive(pair, receiver)

    async def run(self) -> None:
        """Run the port within, whose failure is not that of what is around it."""
        with self.own.code(f"the port {type(self.inner).__name__}", "its run() is over"):
            await self.inner.run()

    def close(self) -> None:
        """Close the port within."""
        self.inner.close()

    def _pass_link_on(self) -> None:
        if self.link_changed is not None:
            self.link_changed()


# Frames in rows of buffers. Within networks of ours the header has 12 bytes, a legacy driver's has 10.


def split(buffers: Sequence[memoryview], size: int) -> tuple[bytes, list[memoryview]]:
    """Return a copy of the first `size` bytes, and the buffers behind those."""
    first = buffers[0]
    if len(first) > size:
        return bytes(first[:size]), [first[size:], *buffers[1:]]
    return b"".join(cut(buffers, size)), skip(buffers, size)


def as_bytes(buffers: Sequence[memoryview], length: int, header_size: int) -> bytes:
    """Return a copy of a frame whose header has `header_size` bytes, with one of 12 bytes."""
    frame = b"".join(cut(buffers, length))
    if header_size == HEADER.size:
        return frame
    return frame[:header_size] + b"\0\0" + frame[header_size:]


def with_header_size(
    buffers: list[memoryview], length: int, header_size: int
) -> tuple[list[memoryview], int]:
    """Return a frame whose header has 12 bytes, and its length, with a header of this size."""
    if header_size == HEADER.size:
        return buffers, length
    start, rest = split(buffers, HEADER.size)
    return [memoryview(start[:LEGACY_HEADER_SIZE]), *rest], length - HEADER.size + LEGACY_HEADER_SIZE

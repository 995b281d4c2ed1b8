"""Notifier: one ring's ways to its driver and its front-end while it is served."""

# How it works: the front-end gives a ring up to three eventfds, at any time, also while it is served: kick,
# by which the driver tells of chains; call, by which it is told of completed ones; err, by which the
# front-end is told of a broken ring. Where a call or err was not given, and notifications go in-band, a
# message of the channel takes its place. The notifier is what a running queue knows of its surroundings (its
# `QueueOwner`); all runs in the one thread, and nothing here waits but `resolve()`.
#
# Descriptors: each eventfd belongs to the notifier until it is replaced or closed. The kick is replaced only
# while no task serves the ring, as that task waits for it; the others may change under it. One that proves
# not to be an eventfd is closed, and the ring goes on without.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

from protocol.io import EventFd
from protocol.vhost_user import VringCall, VringErr

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.fds import OwnedFd
    from vhost_user.backend.dirty_logging import DirtyLogging
    from vhost_user.backend.iommu import IommuResolver
    from vhost_user.backend.sharing import SharingCheck
    from vhost_user.memory.regions import GuestMemory, IotlbMissError
    from vhost_user.transport.channel import Channel

    _Name: TypeAlias = Literal["kick", "call", "err"]

_log = logging.getLogger("vhost_user")


class Notifier:
    """The eventfds of one ring, or the messages in their place. It is the owner of the ring's queue."""

    def __init__(
        self,
        index: int,
        memory: GuestMemory,
        *,
        inband: Callable[[], Channel | None],
        iommu: IommuResolver,
        dirty: DirtyLogging,
        sharing: SharingCheck,
    ) -> None:
        """`inband()` returns the channel for messages in the place of eventfds, if they are negotiated."""
        self.kick: EventFd | None = None
        """The eventfd by which the driver kicks, which may be one of ours for kicks in-band."""
        self._call: EventFd | None = None
        self._err: EventFd | None = None
        self._has_called = False
        self._index = index
        self._memory = memory
        self._inband = inband
        self._iommu = iommu
        self._dirty = dirty
        self._sharing = sharing

    # From the front-end

    def set_kick(self, fd: OwnedFd | EventFd | None) -> None:
        """Take kicks from this eventfd from now on; None: there is none."""
        self.kick = self._replaced(self.kick, fd)

    def set_call(self, fd: OwnedFd | None, *, is_running: bool) -> None:
        """Call the driver by this eventfd from now on.

        A front-end that masks and unmasks an interrupt changes the eventfd, and looks only once for
        calls on the one before. One that we make just then would be lost, so we repeat it.
        """
        self._call = self._replaced(self._call, fd)
        if self._has_called and is_running:
            self.call()
        self._has_called = False

    def set_err(self, fd: OwnedFd | None) -> None:
        """Report a broken ring by this eventfd from now on."""
        self._err = self._replaced(self._err, fd)

    def close(self) -> None:
        """Close the eventfds."""
        self.kick = self._replaced(self.kick, None)
        self._call = self._replaced(self._call, None)
        self._err = self._replaced(self._err, None)

    # To the driver and the front-end

    def call(self) -> None:
        """Interrupt the driver."""
        self._has_called = True
        if self._call is None:
            self._send_inband(VringCall(self._index))
            return
        try:
            self._call.signal()
        except OSError as error:
            self._log_useless("call", error)
            self._call = self._replaced(self._call, None)

    def published(self, wants_call: bool) -> None:
        """Call the driver if it wants that, and tell the front-end of a dirty log that has changed."""
        if wants_call:
            self.call()
        if self._memory.log is not None:
            self._dirty.signal()

    def broke(self, reason: str) -> None:
        """Tell log and front-end that the driver broke the ring; the other rings go on."""
        _log.error("queue %d is broken and stopped: %s", self._index, reason)
        if self._err is None:
            self._send_inband(VringErr(self._index))
            return
        try:
            self._err.signal()
        except OSError as error:
            self._log_useless("err", error)
            self._err = self._replaced(self._err, None)

    def memory_not_shared(self) -> None:
        """Report that the ring holds nothing but zeros, although the driver kicks."""
        self._sharing.memory_not_shared(self._index)

    async def resolve(self, miss: IotlbMissError) -> None:
        """Ask the front-end for the translation of an address. Raises BadAddressError if there is none."""
        await self._iommu.resolve(miss)

    def _send_inband(self, message: VringCall | VringErr) -> None:
        if (channel := self._inband()) is not None:
            channel.notify(message, self._index)

    def _log_useless(self, name: _Name, error: OSError) -> None:
        _log.error("queue %d: its %s descriptor is not an eventfd: %s", self._index, name, error.strerror)

    @staticmethod
    def _replaced(old: EventFd | None, fd: OwnedFd | EventFd | None) -> EventFd | None:
        """Close the eventfd `old`; return the one in its place."""
        if old is not None:
            old.close()
        return fd if fd is None or isinstance(fd, EventFd) else EventFd(fd.detach())

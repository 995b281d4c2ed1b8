"""FrontendLink: the requests that a device makes of its front-end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    MapFlag,
    SharedObjectAdd,
    SharedObjectLookup,
    SharedObjectRemove,
    ShmemMap,
    ShmemUnmap,
)
from vhost_user.transport import FrontendError

if TYPE_CHECKING:
    from uuid import UUID

    from protocol.vhost_user import BackendMessage, Reply
    from vhost_user.transport import Channel


class FrontendLink:
    """The device's way to its front-end, if one is connected.

    Its async methods raise FrontendError where the front-end refuses, does not know the message, or is
    not connected.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def attach(self, channel: Channel | None) -> None:
        """Use `channel` from now on; None: no front-end is connected."""
        self._channel = channel

    def notify(self, message: BackendMessage) -> None:
        """Send a message that has no reply; does nothing where no front-end listens for such."""
        if self._channel is not None:
            self._channel.notify(message)

    async def request(self, message: BackendMessage) -> Reply | None:
        """Send a request; return its reply, which the caller closes, or None if it has none.

        Closes the message's descriptors. Raises FrontendError.
        """
        if self._channel is None:
            message.close()
            raise FrontendError("no front-end is connected that can be asked (it sent no SET_BACKEND_REQ_FD)")
        return await self._channel.request(message)

    async def map_shared_memory(
        self, region: int, fd: int, *, size: int, offset: int = 0, fd_offset: int = 0, writable: bool = True
    ) -> None:
        """Map `size` bytes of the file `fd` into a shared memory region; `fd` stays the caller's."""
        flags = MapFlag.READ_WRITE if writable else MapFlag(0)
        message = ShmemMap(region, fd_offset, offset, size, flags, fds=(OwnedFd(os.dup(fd)),))
        await self._ask(message)

    async def unmap_shared_memory(self, region: int, *, size: int, offset: int = 0) -> None:
        """Remove a mapping of `map_shared_memory()`, as a whole."""
        await self._ask(ShmemUnmap(region, 0, offset, size))

    async def announce_object(self, uuid: UUID) -> None:
        """Offer an object to other devices, which get it from the device's `shared_object()`."""
        await self._ask(SharedObjectAdd(uuid))

    async def withdraw_object(self, uuid: UUID) -> None:
        """End the offer of an object."""
        await self._ask(SharedObjectRemove(uuid))

    async def look_up_object(self, uuid: UUID) -> OwnedFd:
        """Return the dma-buf of an object that another device offers; the caller closes it."""
        reply = await self.request(SharedObjectLookup(uuid))
        fd = None if reply is None else reply.take_fd()
        if fd is None:
            raise FrontendError(f"the front-end knows no shared object {uuid}")
        return fd

    async def _ask(self, message: BackendMessage) -> None:
        reply = await self.request(message)
        if reply is not None:
            reply.close()

"""IommuResolver: addresses behind the guest's IOMMU, asked of the front-end."""

# How it works: the handler of IOTLB_MSG stores translations in guest memory, and wakes who waits here. A
# queue's task that meets an address without one waits in `resolve()`: it asks over the channel, and goes on
# once the address is mapped. The front-end may invalidate a translation between telling it and its use; the
# question is repeated then. Nothing is held while a task waits, so it may be cancelled at any time.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import BackendIotlbMsg, IotlbType, Permission
from vhost_user.memory.iotlb import Access
from vhost_user.memory.regions import BadAddressError, IotlbMissError
from vhost_user.transport.channel import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.memory.regions import GuestMemory
    from vhost_user.transport.channel import Channel


class IommuResolver:
    """Asks for the translations that the rings of one connection miss."""

    def __init__(self, memory: GuestMemory, channel: Callable[[], Channel | None]) -> None:
        """Ask over what `channel()` returns."""
        self._memory = memory
        self._channel = channel
        self._changed = trio.lowlevel.ParkingLot()

    def changed(self) -> None:
        """Wake all tasks that wait for a translation."""
        self._changed.unpark_all()

    async def resolve(self, miss: IotlbMissError) -> None:
        """Ask the front-end for the translation of an address. Raises BadAddressError if there is none."""
        channel = self._channel()
        if channel is None:
            raise BadAddressError(f"{miss}, and it gave no channel to ask over (SET_BACKEND_REQ_FD)")
        while not self._is_mapped(miss):
            before = self._memory.invalidations
            try:
                reply = await channel.request(_message(miss, IotlbType.MISS))
            except FrontendError as error:
                self._report_denied(miss)
                raise BadAddressError(f"{miss}: {error}") from error
            while reply is None and not self._is_mapped(miss):
                await self._changed.park()
            # What was told may be invalidated before we come to look: Linux invalidates everything
            # together, at any time, also what it still uses.
            if not self._is_mapped(miss) and self._memory.invalidations == before:
                self._report_denied(miss)
                raise BadAddressError(str(miss))

    def _report_denied(self, miss: IotlbMissError) -> None:
        """Tell the front-end that the driver gave an address that its IOMMU does not permit."""
        if (channel := self._channel()) is not None:
            channel.notify(_message(miss, IotlbType.ACCESS_FAIL), miss.iova)

    def _is_mapped(self, miss: IotlbMissError) -> bool:
        try:
            self._memory.window(miss.iova, write=Access.WRITE in miss.access)
        except IotlbMissError:
            return False
        except BadAddressError:
            pass
        return True


def _message(miss: IotlbMissError, kind: IotlbType) -> BackendIotlbMsg:
    return BackendIotlbMsg(miss.iova, 1, 0, Permission(int(miss.access)), kind)

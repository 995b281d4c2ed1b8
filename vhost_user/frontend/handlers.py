"""BackendRequestHandlers: a front-end's default answers to its back-end's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.io import EventFd
from protocol.vhost_user import BackendIotlbMsg, ConfigChange, IotlbType, VringCall, VringErr
from protocol.vhost_user.validation import RefusedError

if TYPE_CHECKING:
    from protocol.vhost_user import BackendMessage
    from vhost_user.frontend.connection import Ask
    from vhost_user.frontend.iommu import Iommu
    from vhost_user.frontend.queue import DriverQueue
    from vhost_user.frontend.requests import Handler


class BackendRequestHandlers:
    """Signals the eventfds that in-band messages stand for, and answers for the IOMMU."""

    def __init__(self, queues: dict[int, DriverQueue], iommu: Iommu, ask: Ask) -> None:
        """`queues` are those that were started, by their number, as they come and go."""
        self.config_event = EventFd.create()
        """Signalled when the configuration has changed; `close()` closes it."""
        self._queues = queues
        self._iommu = iommu
        self._ask = ask

    def table(self) -> dict[type[BackendMessage], Handler]:
        """Return a handler for each message that is answered."""
        return {
            ConfigChange: self._change_config,
            VringCall: self._call,
            VringErr: self._report,
            BackendIotlbMsg: self._translate,
        }

    def close(self) -> None:
        """Close the eventfd."""
        self.config_event.close()

    async def _change_config(self, request: ConfigChange) -> None:
        self.config_event.signal()

    async def _call(self, request: VringCall) -> None:
        self._queue(request.index).call.signal()

    async def _report(self, request: VringErr) -> None:
        self._queue(request.index).err.signal()

    async def _translate(self, request: BackendIotlbMsg) -> None:
        if request.type is not IotlbType.MISS:
            return  # the driver gave an address that it had not mapped: its queue breaks
        answer = self._iommu.answer(request.iova, request.permission)
        if answer is None:
            raise RefusedError(f"the IOMMU permits no {request.permission} at {request.iova:#x}")
        await self._ask(answer)

    def _queue(self, index: int) -> DriverQueue:
        if index not in self._queues:
            raise RefusedError(f"there is no queue {index}")
        return self._queues[index]

"""A front-end in Python: drives any vhost-user back-end, with a guest's memory and a driver's queues.

::

    async with vhost_user.frontend.connect("/tmp/echo.sock") as front:
        await front.negotiate()
        queue = await front.start_queue()
        print(await queue.request(b"hello", 5))
"""

from vhost_user.frontend.connect import connect
from vhost_user.frontend.connection import BackendError, BackendGoneError
from vhost_user.frontend.dirty_pages import DirtyPages
from vhost_user.frontend.driver_ring import Buffer, RingFullError, Used
from vhost_user.frontend.frontend import Frontend
from vhost_user.frontend.iommu import Iommu, Translation
from vhost_user.frontend.memory import Block, Memory, OutOfMemoryError, Region
from vhost_user.frontend.queue import DriverQueue, Request

__all__ = [
    "BackendError",
    "BackendGoneError",
    "Block",
    "Buffer",
    "DirtyPages",
    "DriverQueue",
    "Frontend",
    "Iommu",
    "Memory",
    "OutOfMemoryError",
    "Region",
    "Request",
    "RingFullError",
    "Translation",
    "Used",
    "connect",
]

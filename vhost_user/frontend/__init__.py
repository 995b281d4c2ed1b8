"""A front-end in Python, for any back-end: a guest's memory and a driver's queues.

::

    async with vhost_user.frontend.connect("/tmp/echo.sock") as front:
        await front.negotiate()
        queue = await front.start_queue()
        print(await queue.request(b"hello", 5))
"""

from vhost_user.frontend.connect import MEMORY_SIZE, PATIENCE_SECONDS, connect
from vhost_user.frontend.connection import BackendError, BackendGoneError
from vhost_user.frontend.dirty_pages import DirtyPages
from vhost_user.frontend.driver_ring import Buffer, RingFullError, Used
from vhost_user.frontend.frontend import Frontend
from vhost_user.frontend.iommu import Iommu, Translation
from vhost_user.frontend.memory import Block, Memory, OutOfMemoryError, Region
from vhost_user.frontend.queue import DriverQueue, Part, Request

__all__ = [
    "MEMORY_SIZE",
    "PATIENCE_SECONDS",
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
    "Part",
    "Region",
    "Request",
    "RingFullError",
    "Translation",
    "Used",
    "connect",
]

"""The driver's side of a virtqueue: buffers out, used buffers back."""

from vhost_user.frontend.driver_ring.driver_ring import Buffer, DriverRing, RingFullError, Table, Used
from vhost_user.frontend.driver_ring.packed import PackedDriver
from vhost_user.frontend.driver_ring.split import SplitDriver

__all__ = ["Buffer", "DriverRing", "PackedDriver", "RingFullError", "SplitDriver", "Table", "Used"]

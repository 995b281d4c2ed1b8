"""The device's side of a virtqueue: descriptors in, used elements out; no trio, no notification."""

from vhost_user.ring.packed import PackedRing
from vhost_user.ring.ring import BrokenRingError, Element, Ring, RingConfig
from vhost_user.ring.split import SplitRing

__all__ = ["BrokenRingError", "Element", "PackedRing", "Ring", "RingConfig", "SplitRing"]

"""The device's side of a virtqueue: descriptors in, used elements out."""

from vhost_user.ring.chain import Batch, Chain, Completions
from vhost_user.ring.packed import PackedRing
from vhost_user.ring.ring import BrokenRingError, Ring, RingConfig
from vhost_user.ring.split import SplitRing

__all__ = [
    "Batch",
    "BrokenRingError",
    "Chain",
    "Completions",
    "PackedRing",
    "Ring",
    "RingConfig",
    "SplitRing",
]

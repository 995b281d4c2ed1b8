"""VIRTIO_F_IN_ORDER: chains are given back in the order of the driver (virtio 1.3, 2.7.9)."""

from __future__ import annotations

from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhost_user.ring.chain import Chain

# How it works: a chain that is completed before an older one stays in the ring's record, completed and
# without buffers, until the older ones are completed, too. Nothing of this is in shared memory: what a
# crash leaves is in flight for the next process, also where the device had completed it.


def give_back(taken: Iterable[Chain], done: Sequence[Chain]) -> list[Chain]:
    """Drop the buffers of `done`; return the oldest of `taken`, up to the first that is not completed."""
    for chain in done:
        chain.drop_buffers()
    return list(takewhile(attrgetter("completed"), taken))

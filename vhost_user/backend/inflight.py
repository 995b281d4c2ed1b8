"""InflightNotes: where the rings of a connection note what is in flight (SET_INFLIGHT_FD)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user import Negotiation
    from vhost_user.memory.inflight_file import InflightBuffer

_log = logging.getLogger("vhost_user")


class InflightNotes:
    """The buffer that the front-end gave, if any, in which each ring has a part.

    The buffer is shared memory that the front-end keeps when we die: what a ring noted in its part is what
    the next back-end begins with. `buffer` may be replaced only while all rings are stopped.
    """

    def __init__(self, negotiation: Negotiation) -> None:
        self.buffer: InflightBuffer | None = None
        self._negotiation = negotiation

    def part(self, index: int, size: int) -> memoryview | None:
        """Return the part of queue `index`, with a ring of `size` entries; None if it has none."""
        if self.buffer is None:
            return None
        return self.buffer.part(index, size, packed=Feature.RING_PACKED in self._negotiation.features)

    def log_untracked(self, index: int, size: int) -> None:
        """Log that queue `index` has no part of the buffer, if there is a buffer."""
        if (buffer := self.buffer) is not None:
            _log.warning(
                "queue %d has %d entries, and no room in the in-flight buffer, which was made for %d queues"
                " of %d: what is under way is lost to the driver if the back-end dies; with a reboot, the"
                " front-end asks for another buffer",
                *(index, size, buffer.num_queues, buffer.queue_size),
            )

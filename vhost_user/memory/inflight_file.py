"""InflightBuffer: the memory in which all queues of a device note what they have in flight.

vhost-user, "Inflight I/O tracking". The front-end keeps it for us while we are away. The layout is
the back-end's own affair: in a buffer of ours each queue has room for the largest ring there is. The
size that a front-end asks for need not be that of its rings (QEMU 10.0 asks for 128 entries and gives
each ring 1024), and whether they are packed may be settled later.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from protocol.fds import OwnedFd
from protocol.vhost_user.inflight import VERSION_16, part_bytes, queue_bytes
from protocol.virtio import packed
from protocol.words import plural
from vhost_user.memory.mapping import MappingError, map_shared

if TYPE_CHECKING:
    from protocol.vhost_user import SetInflightFd

# How it works: the front-end owns the file, and gives it to the process that serves after this one. The
# mapping is shared, the pages outlive a crash, and no two processes write at a time. Parts are slices of
# one view: a running queue holds its part, and the mapping with it, also after another buffer was set.

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_PART_BYTES = queue_bytes(packed.MAX_SIZE, packed=True)
"""What each queue has in a buffer of ours. It costs address space, and memory as far as a ring is long."""


class InflightBuffer:
    """A part for each of `num_queues` queues.

    By its size a buffer is recognised as one of ours. In another back-end's, or an older version's, the
    parts lie as close together as rings of `queue_size` permit.
    """

    def __init__(self, view: memoryview, num_queues: int, queue_size: int) -> None:
        """Raises MappingError where `view` is too small for what it is said to be."""
        self.num_queues = num_queues
        self.queue_size = queue_size
        self._view = view
        self._is_roomy = len(view) == num_queues * _PART_BYTES
        least = num_queues * queue_bytes(queue_size, packed=False)
        if len(view) < least:
            raise MappingError(
                f"an in-flight buffer of {len(view)} bytes for {plural(num_queues, 'queue')} of {queue_size},"
                f" which take {least}"
            )

    @classmethod
    def adopt(cls, message: SetInflightFd) -> Self:
        """Map what the front-end gives back, and close its descriptor. Raises MappingError."""
        (fd,) = message.take_fds()
        with fd:
            view = map_shared(fd, message.mmap_size, message.mmap_offset)
        return cls(view, message.num_queues, message.queue_size)

    def part(self, index: int, size: int, *, packed: bool) -> memoryview | None:
        """Return what belongs to the queue `index`; None where there is no room for a ring of `size`."""
        step = _PART_BYTES if self._is_roomy else queue_bytes(self.queue_size, packed=packed)
        part = self._view[index * step : (index + 1) * step]
        if index >= self.num_queues or len(part) < part_bytes(size, packed=packed):
            return None
        return part


def forget(part: memoryview) -> None:
    """Make a queue's part, which must not be in use, as if it had never been used."""
    part.cast("H")[VERSION_16] = 0


def create_file(num_queues: int) -> tuple[OwnedFd, int]:
    """Return a new file for the buffer, which the caller closes, and its size in bytes. Raises OSError."""
    size = num_queues * _PART_BYTES
    fd = OwnedFd(os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        fd.close()
        raise
    return fd, size

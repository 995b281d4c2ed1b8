"""InflightBuffer: the memory in which all queues of a device note what they have in flight.

vhost-user, "Inflight I/O tracking". The front-end keeps it for us while we are away.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from protocol.fds import OwnedFd
from protocol.virtio.inflight import VERSION_16, queue_bytes
from vhost_user.mapping import MappingError, map_shared

if TYPE_CHECKING:
    from protocol.vhost_user import SetInflightFd

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class InflightBuffer:
    """A part for each of `num_queues` queues of up to `queue_size` entries."""

    def __init__(self, view: memoryview, num_queues: int, queue_size: int, *, packed: bool) -> None:
        """Raises MappingError where `view` is too small."""
        self._view = view
        self._count = num_queues
        self._step = queue_bytes(queue_size, packed=packed)
        if len(view) < self._count * self._step:
            raise MappingError(
                f"an in-flight buffer of {len(view)} bytes for {num_queues} queues of {queue_size},"
                f" which take {self._count * self._step}"
            )

    @classmethod
    def adopt(cls, message: SetInflightFd, *, packed: bool) -> Self:
        """Map what the front-end gives back, and close its descriptor. Raises MappingError."""
        (fd,) = message.take_fds()
        with fd:
            view = map_shared(fd, message.mmap_size, message.mmap_offset)
        return cls(view, message.num_queues, message.queue_size, packed=packed)

    def part(self, index: int) -> memoryview | None:
        """Return what belongs to the queue `index`; None for one that the buffer was not made for."""
        if index >= self._count:
            return None
        return self._view[index * self._step : (index + 1) * self._step]

    def forget(self, index: int) -> None:
        """Have what belongs to the queue `index`, which must not run, as if it had never been used."""
        if (part := self.part(index)) is not None:
            part.cast("H")[VERSION_16] = 0


def create_file(num_queues: int, queue_size: int, *, packed: bool) -> tuple[OwnedFd, int]:
    """Return a new file for the buffer, which the caller closes, and its size in bytes. Raises OSError."""
    size = num_queues * queue_bytes(queue_size, packed=packed)
    fd = OwnedFd(os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        fd.close()
        raise
    return fd, size

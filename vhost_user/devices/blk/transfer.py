"""Reads and writes of a batch that need no waiting, done in the thread of the loop."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Protocol

from protocol.virtio.blk import REQUEST_HEADER, RequestType
from vhost_user.devices.blk.parallel_reads import WORTH_SHARING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.blk.disk import Disk
    from vhost_user.devices.blk.parallel_reads import Read
    from vhost_user.ring import Batch, Chain

PUBLISH_BYTES = 1 << 17
"""After how many bytes the driver is told of completed requests: it works on with them meanwhile. Telling
costs as much as copying a tenth of that."""

_IN = int(RequestType.IN)
_OUT = int(RequestType.OUT)


class Completer(Protocol):
    """The queue that the chains of a batch are from."""

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        """Complete chains, each with the bytes written to it."""

    def flush(self) -> None:
        """Publish completed chains now."""


@cache
def _reads_file(kind: type) -> bool:
    """Tell whether `direct_file()` speaks for a disk's `read_now()`: not where only that was overridden."""
    for each in kind.__mro__:
        if "direct_file" in vars(each):
            return True
        if "read_now" in vars(each):
            break
    return False


def transfer_now(  # noqa: C901, PLR0912, PLR0915 -- one loop without calls: it runs for every request
    disk: Disk, chains: Batch, queue: Completer, *, may_write: bool
) -> list[Chain]:
    """Complete the reads and writes that need no waiting; return the other chains, and all that are odd.

    Without `may_write`, that is only reads. Where a method of `disk` raises anything but OSError, so does
    this, and what was done before is completed.
    """
    size, unpack, preadv = disk.size, REQUEST_HEADER.unpack, os.preadv
    file, flags = (disk.direct_file() if _reads_file(type(disk)) else None) or (-1, 0)
    share_from = WORTH_SHARING if disk.shares_reads else size + 1
    left = []
    large: list[tuple[Chain, Read, int]] = []
    done: list[tuple[Chain, int]] = []
    unpublished = 0
    try:
        for chain in chains:
            try:
                number, _, sector = unpack(chain.readable_buffers[0])
                offset = sector << 9
                writable = chain.writable_buffers
                status = writable[-1]
                writable_length = chain.writable_length
                count = -1
                if number == _IN:
                    length = writable_length - 1
                    if (
                        chain.readable_length == 16
                        and len(status) == 1
                        and not length & 511
                        and offset + length <= size
                    ):
                        buffers = writable[:-1]
                        if length >= share_from:
                            large.append((chain, (buffers, offset), length))
                            continue
                        if file >= 0:
                            count = preadv(file, buffers, offset, flags)
                        else:
                            count = disk.read_now(buffers, offset, length)
                else:
                    length = chain.readable_length - 16
                    is_plain = number == _OUT and writable_length == 1 and may_write
                    if is_plain and not length & 511 and offset + length <= size:
                        count = disk.write_now(chain.readable_buffers[1:], offset, length)
                if count == length:
                    status[0] = 0
                    done.append((chain, writable_length))
                    unpublished += length
                    if unpublished >= PUBLISH_BYTES:
                        queue.complete_together(done)
                        queue.flush()
                        done = []
                        unpublished = 0
                    continue
            except (IndexError, struct.error, OSError):
                pass  # the executor comes to the same in a thread, and says why
            left.append(chain)
    finally:
        if done:
            queue.complete_together(done)
    return left + _read_large(disk, large, queue) if large else left


def _read_large(disk: Disk, large: Sequence[tuple[Chain, Read, int]], queue: Completer) -> list[Chain]:
    """Complete large reads that need no waiting; return the others."""
    left = []
    with closing(disk.read_each_now([read for _, read, _ in large])) as results:
        for place, count in results:
            chain, _, length = large[place]
            if count == length:
                chain.writable_buffers[-1][0] = 0
                queue.complete_together([(chain, chain.writable_length)])
                queue.flush()
            else:
                left.append(chain)
    return left

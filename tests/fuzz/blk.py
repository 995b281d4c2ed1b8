"""Any chains to a block device.

The first byte says what the driver turned on and what the disk is; the rest is what is in the guest's
memory from address 0 on, where a split ring is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from protocol.virtio.blk import REQUEST_HEADER, SEGMENT, BlkFeature, RequestStatus, RequestType
from protocol.virtio.features import Feature
from tests.fuzz.guest import USER, GuardedGuest
from tests.fuzz.harness import DefectError
from tests.fuzz.ring_seeds import memory
from tests.fuzz.rings import parts_of
from vhost_user.devices.blk.executor import Executor
from vhost_user.devices.blk.file import FileDisk
from vhost_user.devices.blk.transfer import transfer_now
from vhost_user.ring import BrokenRingError, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhost_user.ring import Batch, Chain

READ_ONLY, NO_DISCARD, WRITE_THROUGH, THOROUGH = 1, 2, 4, 8
"""Bits of the first byte; THOROUGH: nothing is tried the quick way first."""

SIZE = 16
SECTORS = 8
_FEATURES = int(Feature.VERSION_1 | Feature.INDIRECT_DESC)
_CONTENT = bytes(range(256)) * (2 * SECTORS)

_guest = GuardedGuest()
_file = OwnedFd(os.memfd_create("fuzz-disk"))


def one_input(data: bytes) -> None:
    """Fail unless every request is answered, with nothing written but its buffers and the disk."""
    flags = data[0] if data else 0
    table, avail, used, end = parts_of("split", SIZE)
    _guest.begin(data[1:], [(used, end - used)])
    os.ftruncate(_file.fileno(), len(_CONTENT))
    os.pwrite(_file.fileno(), _CONTENT, 0)
    with _file.dup() as fd:
        executor = Executor(FileDisk(fd, read_only=bool(flags & READ_ONLY)), "serial")
        if not flags & NO_DISCARD:
            executor.features = BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
        executor.write_through = bool(flags & WRITE_THROUGH)
        try:
            ring = SplitRing(
                _guest.memory, RingConfig(SIZE, USER + table, USER + avail, USER + used, _FEATURES), 0
            )
            while chains := ring.pop(4):
                _serve(executor, chains, thorough=bool(flags & THOROUGH))
                ring.push(chains)
        except BrokenRingError:
            pass
    _guest.check()
    _check_disk(read_only=bool(flags & READ_ONLY))


class _Queue:
    """Completes chains, and publishes nothing."""

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        for chain, written in done:
            chain.complete(written)

    def flush(self) -> None:
        pass


def _now(executor: Executor, chains: Batch) -> list[Chain]:
    may_write = not (executor.disk.read_only or executor.write_through)
    return transfer_now(executor.disk, chains, _Queue(), may_write=may_write)


def _serve(executor: Executor, chains: Batch, *, thorough: bool) -> None:
    for chain in chains if thorough else _now(executor, chains):
        executor.describe(chain)
        executor.serve(chain)
        chain.complete(chain.writable_length)
    for chain in chains:
        if chain.written != chain.writable_length:
            raise DefectError(f"{chain.written} bytes are said to be written of {chain.writable_length}")
        for view in chain.writable_buffers:
            _guest.written(view)
    last = chains[-1].writable_buffers
    if last and last[-1][-1] not in list(RequestStatus):  # that of one before may have been overwritten
        raise DefectError(f"the status is {last[-1][-1]}")


def _check_disk(*, read_only: bool) -> None:
    size = os.fstat(_file.fileno()).st_size
    if size != len(_CONTENT):
        raise DefectError(f"the disk has {size} bytes now")
    if read_only and os.pread(_file.fileno(), size, 0) != _CONTENT:
        raise DefectError("a disk that is read-only was written to")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield each type of request, one that is beyond the end, and all of them together."""

    def header(kind: int, sector: int = 0) -> bytes:
        return REQUEST_HEADER.pack(kind, 0, sector)

    requests = {
        "read": ([header(RequestType.IN, 1)], [512, 512, 1]),
        "read_in_pieces": ([header(RequestType.IN, 1)], [100, 412, 1]),
        "write": ([header(RequestType.OUT, 2), b"data" * 128], [1]),
        "flush": ([header(RequestType.FLUSH)], [1]),
        "get_id": ([header(RequestType.GET_ID)], [20, 1]),
        "discard": ([header(RequestType.DISCARD), SEGMENT.pack(1, 2, 0)], [1]),
        "write_zeroes": ([header(RequestType.WRITE_ZEROES), SEGMENT.pack(1, 2, 1) * 2], [1]),
        "beyond": ([header(RequestType.IN, SECTORS - 1)], [1024, 1]),
        "unknown": ([header(99)], [1]),
    }
    for name, request in requests.items():
        yield name, b"\0" + memory("split", SIZE, _FEATURES, [request], indirect=False)
    few = list(requests.values())[2:7]
    for flags in (0, READ_ONLY, NO_DISCARD, WRITE_THROUGH, THOROUGH):
        yield f"several_{flags}", bytes([flags]) + memory("split", SIZE, _FEATURES, few, indirect=True)

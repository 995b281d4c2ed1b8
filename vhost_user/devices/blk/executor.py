"""Does the requests of a block device on its disk. No waiting, no tasks, no notification in here."""

from __future__ import annotations

import errno
import logging
import struct
from contextlib import closing
from typing import TYPE_CHECKING

from protocol.program.warnings import LimitedLogger
from protocol.virtio.blk import (
    ID_SIZE,
    REQUEST_HEADER,
    SECTOR_SIZE,
    BlkFeature,
    RequestStatus,
    RequestType,
)
from vhost_user.buffers import Writable
from vhost_user.containment import Containment
from vhost_user.devices.blk.parallel_reads import WORTH_SHARING
from vhost_user.devices.blk.requests import BadRequestError, answer, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhost_user.devices.blk.disk import Disk
    from vhost_user.devices.blk.parallel_reads import Read
    from vhost_user.devices.blk.requests import Request
    from vhost_user.ring import Batch, Chain


_log = logging.getLogger("vhost_user.blk")

PUBLISH_BYTES = 1 << 17
"""After how many bytes the driver is told of what is done: it works on with them meanwhile. Telling
costs as much as copying a tenth of that."""

_IN = int(RequestType.IN)
_OUT = int(RequestType.OUT)


class Executor:
    """Does requests: `serve_now()` in the loop's thread, `serve()` in other threads, several at a time."""

    def __init__(self, disk: Disk, serial: str = "") -> None:
        """`serial` has at most ID_SIZE bytes of ASCII. Raises ValueError."""
        self.features = BlkFeature.NONE
        """What the driver turned on."""
        self.write_through = False
        """Whether a write must be on the medium when it is completed."""
        self.failures = LimitedLogger(_log, "failed requests")
        """Where they are logged."""
        self._disk = disk
        self._name = disk.name
        self._own = Containment(_log)
        self._id = serial.encode("ascii")
        if len(self._id) > ID_SIZE:
            raise ValueError(f"'{serial}' has more than {ID_SIZE} characters")

    def serve_now(self, chains: Batch, publish: Callable[[], None]) -> list[Chain]:
        """Complete the reads and writes that need no waiting; return the others, and all that is odd.

        `publish` is called whenever so much has been done that the driver should hear of it.
        """
        disk, size, unpack = self._disk, self._disk.size, REQUEST_HEADER.unpack
        may_write = not (disk.read_only or self.write_through)
        share_from = WORTH_SHARING if disk.shares_reads else size + 1
        left = []
        large: list[tuple[Chain, Read, int]] = []
        unpublished = 0
        for chain in chains:
            try:
                number, _, sector = unpack(chain.readable_buffers[0])
                offset = sector << 9
                status = chain.writable_buffers[-1]
                if number == _IN:
                    transfer = disk.read_now
                    buffers = chain.writable_buffers[:-1]
                    length = chain.writable_length - 1
                    is_plain = chain.readable_length == 16 and len(status) == 1
                else:
                    transfer = disk.write_now
                    buffers = chain.readable_buffers[1:]
                    length = chain.readable_length - 16
                    is_plain = number == _OUT and chain.writable_length == 1 and may_write
                is_plain = is_plain and not length & 511 and offset + length <= size
                if is_plain and length >= share_from and number == _IN:
                    large.append((chain, (buffers, offset), length))
                    continue
                if is_plain and transfer(buffers, offset, length) == length:
                    status[0] = 0
                    chain.complete(chain.writable_length)
                    unpublished += length
                    if unpublished >= PUBLISH_BYTES:
                        publish()
                        unpublished = 0
                    continue
            except (IndexError, struct.error, OSError):
                pass  # serve() comes to the same, and says why
            left.append(chain)
        return left + self._read_large(large, publish) if large else left

    def _read_large(
        self, large: Sequence[tuple[Chain, Read, int]], publish: Callable[[], None]
    ) -> list[Chain]:
        """Complete large reads that need no waiting; return the others."""
        left = []
        with closing(self._disk.read_each_now([read for _, read, _ in large])) as results:
            for place, count in results:
                chain, _, length = large[place]
                if count == length:
                    chain.writable_buffers[-1][0] = 0
                    chain.complete(chain.writable_length)
                    publish()
                else:
                    left.append(chain)
        return left

    def describe(self, chain: Chain) -> Request | None:
        """Return what a request asks for; None for one that cannot be done whatever the disk."""
        try:
            return parse(chain, self.features)
        except BadRequestError:
            return None

    def serve(self, chain: Chain) -> None:
        """Do a request, however long it takes, and write its status; only its completion is left."""
        request = None
        try:
            request = parse(chain, self.features)
            self._perform(request)
        except BadRequestError as error:
            if error.status is RequestStatus.UNSUPP:
                _log.debug("refused: %s", error)  # drivers ask so what there is
            else:
                self.failures.warning(f"{self._name}: refused: {error}")
            answer(chain, error.status)
        except OSError as error:
            reason = f"{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
            self.failures.warning(f"{self._name}: {request} failed: {reason}")
            answer(chain, RequestStatus.IOERR)
        except Exception as error:
            self._own.failed(
                f"the disk {type(self._disk).__name__}", "the guest's request gets an error", error
            )
            answer(chain, RequestStatus.IOERR)
        else:
            answer(chain, RequestStatus.OK)

    def _perform(self, request: Request) -> None:
        if self._disk.read_only and request.type in _WRITING:
            raise BadRequestError(RequestStatus.IOERR, f"{request}, which is read-only")
        size = self._disk.size // SECTOR_SIZE
        for sector, count, _ in request.segments:
            if sector + count > size:
                raise BadRequestError(RequestStatus.IOERR, f"{request}, beyond the end, sector {size}")
        _PERFORM[request.type](self, request)

    def read(self, request: Request) -> None:
        """Do an IN."""
        self._disk.read(request.data, request.segments[0].sector * SECTOR_SIZE)

    def write(self, request: Request) -> None:
        """Do an OUT."""
        offset = request.segments[0].sector * SECTOR_SIZE
        self._disk.write(request.data, offset, stable=self.write_through)

    def flush(self, _request: Request) -> None:
        """Do a FLUSH."""
        self._disk.flush()

    def get_id(self, request: Request) -> None:
        """Do a GET_ID."""
        length = sum(map(len, request.data))
        Writable(request.data, length).write(self._id.ljust(length, b"\0"))

    def discard(self, request: Request) -> None:
        """Do a DISCARD."""
        for sector, count, _ in request.segments:
            if count:
                self._disk.discard(sector * SECTOR_SIZE, count * SECTOR_SIZE)

    def write_zeroes(self, request: Request) -> None:
        """Do a WRITE_ZEROES."""
        for sector, count, unmap in request.segments:
            if count:
                self._disk.write_zeroes(sector * SECTOR_SIZE, count * SECTOR_SIZE, unmap=unmap)
        if self.write_through:
            self._disk.flush()


_PERFORM: dict[RequestType, Callable[[Executor, Request], None]] = {
    RequestType.IN: Executor.read,
    RequestType.OUT: Executor.write,
    RequestType.FLUSH: Executor.flush,
    RequestType.GET_ID: Executor.get_id,
    RequestType.DISCARD: Executor.discard,
    RequestType.WRITE_ZEROES: Executor.write_zeroes,
}
_WRITING = frozenset({RequestType.OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES})
_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room on its file system")

"""Executes the requests of a block device on its disk, however long the disk takes; no trio."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from protocol.program.warnings import LimitedLogger
from protocol.virtio.blk import (
    ID_SIZE,
    SECTOR_SIZE,
    BlkFeature,
    RequestStatus,
    RequestType,
)
from vhost_user.buffers import Writable
from vhost_user.devices.blk.requests import BadRequestError, parse_request, write_response
from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.devices.blk.disk import Disk
    from vhost_user.devices.blk.requests import Request
    from vhost_user.ring import Chain


_log = logging.getLogger("vhost_user.blk")


class Executor:
    """Executes requests in threads, several at a time; transfer.py does those that need no waiting."""

    def __init__(self, disk: Disk, serial: str = "") -> None:
        """`serial` has at most ID_SIZE bytes of ASCII. Raises ValueError."""
        self.features = BlkFeature.NONE
        """What the driver turned on."""
        self.write_through = False
        """Whether a write must be on the medium when it is completed."""
        self.failures = LimitedLogger(_log, "failed requests")
        """Where they are logged."""
        self.disk = disk
        """Where it does them."""
        self._name = disk.name
        self._own = Containment(_log)
        self._id = serial.encode("ascii")
        if len(self._id) > ID_SIZE:
            raise ValueError(f"'{serial}' has more than {ID_SIZE} characters")

    def describe(self, chain: Chain) -> Request | None:
        """Return what a request asks for; None for one that cannot be done whatever the disk."""
        try:
            return parse_request(chain, self.features)
        except BadRequestError:
            return None

    def serve(self, chain: Chain) -> None:
        """Do a request, however long it takes, and write its status; only its completion is left."""
        request = None
        try:
            request = parse_request(chain, self.features)
            self._perform(request)
        except BadRequestError as error:
            if error.status is RequestStatus.UNSUPP:
                _log.debug("refused: %s", error)  # drivers find out so what is supported
            else:
                self.failures.warning(f"{self._name}: refused: {error}")
            write_response(chain, error.status)
        except OSError as error:
            reason = f"{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
            self.failures.warning(f"{self._name}: {request} failed: {reason}")
            write_response(chain, RequestStatus.IOERR)
        except Exception as error:
            self._own.failed(
                f"the disk {type(self.disk).__name__}", "the guest's request gets an error", error
            )
            write_response(chain, RequestStatus.IOERR)
        else:
            write_response(chain, RequestStatus.OK)

    def _perform(self, request: Request) -> None:
        if self.disk.read_only and request.type in _WRITING:
            raise BadRequestError(RequestStatus.IOERR, f"{request}, which is read-only")
        size = self.disk.size // SECTOR_SIZE
        for sector, count, _ in request.segments:
            if sector + count > size:
                raise BadRequestError(RequestStatus.IOERR, f"{request}, beyond the end, sector {size}")
        _PERFORM[request.type](self, request)

    def read(self, request: Request) -> None:
        """Do an IN."""
        self.disk.read(request.data, request.segments[0].sector * SECTOR_SIZE)

    def write(self, request: Request) -> None:
        """Do an OUT."""
        offset = request.segments[0].sector * SECTOR_SIZE
        self.disk.write(request.data, offset, stable=self.write_through)

    def flush(self, _request: Request) -> None:
        """Do a FLUSH."""
        self.disk.flush()

    def get_id(self, request: Request) -> None:
        """Do a GET_ID."""
        length = sum(map(len, request.data))
        Writable(request.data, length).write(self._id.ljust(length, b"\0"))

    def discard(self, request: Request) -> None:
        """Do a DISCARD."""
        for sector, count, _ in request.segments:
            if count:
                self.disk.discard(sector * SECTOR_SIZE, count * SECTOR_SIZE)

    def write_zeroes(self, request: Request) -> None:
        """Do a WRITE_ZEROES."""
        for sector, count, unmap in request.segments:
            if count:
                self.disk.write_zeroes(sector * SECTOR_SIZE, count * SECTOR_SIZE, unmap=unmap)
        if self.write_through:
            self.disk.flush()


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

"""rng: the entropy device (virtio 1.3, section 5.4), fed from a file of the host."""

from __future__ import annotations

import copy
import errno
import logging
import os
import stat
from typing import TYPE_CHECKING, Self

import trio

from protocol.fds import OwnedFd
from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.program.units import parse_time
from protocol.program.warnings import FailureLogger
from protocol.virtio.ids import DeviceId
from vhost_user.device import VirtioDevice
from vhost_user.device_program import DeviceProgram

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

DEFAULT_FILE = "/dev/urandom"
DEFAULT_PERIOD = 60.0
_MAX_MILLISECONDS = 1 << 32

MAX_READ = 65536
"""The largest number of bytes for one request, so that none delays the others for long."""

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_RETRY_SECONDS = 0.05
_ERROR_RETRY_SECONDS = 1.0

_log = logging.getLogger("vhost_user")


class Quota:
    """At most `limit` bytes in each period of `period` seconds; a period begins when it is first used."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._left = 0
        self._end = 0.0

    def take(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be had now, and count them; 0: wait first."""
        now = trio.current_time()
        if now >= self._end:
            self._left, self._end = self._limit, now + self._period
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """Count `unused` bytes as not taken."""
        self._left += unused

    async def wait(self) -> None:
        """Wait until the next period."""
        await trio.sleep_until(self._end)


class Source:
    """A file or device that supplies bytes without end: a regular file is read again from its start."""

    def __init__(self, filename: str) -> None:
        """Open `filename`. Raises OSError."""
        self._name = filename
        self._fd = OwnedFd(os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        mode = os.fstat(self._fd.fileno()).st_mode
        if stat.S_ISDIR(mode):
            self._fd.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), filename)
        self._is_regular = stat.S_ISREG(mode)
        self._told_empty = False
        self._failures = FailureLogger(_log)

    def for_another(self) -> Self:
        """Return it for another reader, who gets what comes next: none has bytes that another one had.

        Each closes its own.
        """
        other = copy.copy(self)
        other._fd = self._fd.dup()  # one task can wait for each
        return other

    def close(self) -> None:
        """Close it."""
        self._fd.close()

    def read_now(self, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` with what is there without waiting; return how many bytes that was, perhaps 0."""
        try:
            return os.readv(self._fd.fileno(), buffers[:_IOV_MAX])
        except OSError:
            return 0  # read_into() comes to the same, and says why

    async def read_into(self, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` with what is there, at least one byte; return how many bytes that was."""
        while True:
            try:
                if count := os.readv(self._fd.fileno(), buffers[:_IOV_MAX]):
                    self._failures.worked()
                    return count
                await self._begin_again()
            except BlockingIOError:
                await self._until_readable()
            except OSError as error:
                self._failures.failed(f"cannot read {self._name}: {error.strerror}; trying again")
                await trio.sleep(_ERROR_RETRY_SECONDS)

    async def _begin_again(self) -> None:
        if self._is_regular and os.fstat(self._fd.fileno()).st_size:
            os.lseek(self._fd.fileno(), 0, os.SEEK_SET)
            return
        if not self._told_empty:
            self._told_empty = True
            _log.warning("%s has no bytes: the guest waits until it has some", self._name)
        await trio.sleep(_RETRY_SECONDS)

    async def _until_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._fd.fileno())
        except PermissionError:
            await trio.sleep(_RETRY_SECONDS)  # a device, such as hwrng, that cannot be polled


class Rng(VirtioDevice):
    """Random bytes for a guest, from a file of the host."""

    device_id = DeviceId.RNG
    name = "rng"

    def __init__(
        self, filename: str = DEFAULT_FILE, *, period: float = DEFAULT_PERIOD, max_bytes: int | None = None
    ) -> None:
        """Read from `filename`, at most `max_bytes` in each `period` of seconds. Raises OSError."""
        self._source = Source(filename)
        self._quota = None if max_bytes is None else Quota(max_bytes, period)

    def for_another_guest(self) -> Self:
        """Return a device for another guest, with the same file, and with a period of its own.

        No guest gets bytes that another one got, unless the file begins again. Close each of them.
        """
        other = copy.copy(self)
        other._source = self._source.for_another()
        other._quota = copy.copy(self._quota)
        return other

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Fill each chain with what may be had, at least one byte."""
        async for chain in queue:
            if self._fill_now(chain):
                chain.complete()
                continue
            with queue.until_stop() as scope:
                await self._fill(chain)
            if scope.cancelled_caught:
                chain.put_back()
            else:
                chain.complete()

    def _fill_now(self, chain: Chain) -> bool:
        """Fill what needs no waiting, which costs a third less than being ready to wait; False: nothing."""
        wanted = min(chain.writable.remaining, MAX_READ)
        granted = wanted if self._quota is None else self._quota.take(wanted)
        count = self._source.read_now(chain.writable.first(granted)) if granted else 0
        chain.writable.advance(count)
        if self._quota is not None:
            self._quota.give_back(granted - count)
        return count > 0 or not wanted

    async def _fill(self, chain: Chain) -> None:
        wanted = min(chain.writable.remaining, MAX_READ)
        if not wanted:
            return
        unused = granted = await self._until_granted(wanted)
        try:
            count = await self._source.read_into(chain.writable.first(granted))
            chain.writable.advance(count)
            unused -= count
        finally:
            if self._quota is not None:
                self._quota.give_back(unused)

    async def _until_granted(self, wanted: int) -> int:
        if self._quota is None:
            return wanted
        while not (granted := self._quota.take(wanted)):
            await self._quota.wait()
        return granted


class RngProgram(DeviceProgram):
    """vhost-user-rng."""

    device = Rng
    many_sockets = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of rust-vmm's vhost-device-rng."""
        parser.add_argument(
            "-f",
            "--filename",
            metavar="FILE",
            default=DEFAULT_FILE,
            help="read the bytes from FILE (default: %(default)s)",
        )
        parser.add_argument(
            "-p",
            "--period",
            metavar="MS",
            type=parsed_by(_milliseconds),
            default=int(DEFAULT_PERIOD * 1000),
            help="the period of --max-bytes, in milliseconds or with a unit, as 1.5s (default: %(default)s)",
        )
        parser.add_argument(
            "-m",
            "--max-bytes",
            metavar="N",
            type=whole_number(1, 1 << 64),
            help="give a guest at most N bytes in a period (default: no limit)",
        )

    def make(self, options: argparse.Namespace) -> list[Rng]:
        """Return a device for each guest. Raises UserError, and OSError for too many."""
        try:
            device = self.device(options.filename, period=options.period / 1000, max_bytes=options.max_bytes)
        except OSError as error:
            raise UserError(
                f"cannot read {options.filename}: {error.strerror}; give another file with -f"
            ) from None
        more = max(len(self.socket_paths(options)) - 1, 0)
        return [device, *(device.for_another_guest() for _ in range(more))]


def _milliseconds(text: str) -> float:
    """Return the milliseconds of a plain number, as rust-vmm's program reads it, or of a time with a unit.

    Raises ValueError, in words for the user.
    """
    found = int(text) if text.isdecimal() else 1000 * parse_time(text)
    if not 1 <= found <= _MAX_MILLISECONDS:
        raise ValueError(f"'{text}' is not a period from 1 to {_MAX_MILLISECONDS} milliseconds")
    return found

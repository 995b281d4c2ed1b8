"""blk: a disk in a raw file or on a block device of the host, with faults on demand."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from protocol.io.threads import run_in_thread
from protocol.program.warnings import OnceLogger
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.blk import SECTOR_SIZE, WRITEBACK_OFFSET, BlkConfig, BlkFeature
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.words import plural
from vhost_user.device import RING_FEATURES, VirtioDevice
from vhost_user.devices.blk.executor import Executor
from vhost_user.devices.blk.faults import Action, Fault, Faults
from vhost_user.devices.blk.locking import ImageInUseError
from vhost_user.devices.blk.requests import (
    MAX_DISCARD_SECTORS,
    MAX_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
    write_response,
)
from vhost_user.devices.blk.transfer import transfer_now
from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from protocol.vhost_user import ConfigFlag
    from vhost_user.devices.blk.disk import Disk
    from vhost_user.devices.blk.faults import FaultFile
    from vhost_user.devices.blk.locking import ImageLock
    from vhost_user.devices.blk.requests import Request
    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

DEFAULT_QUEUE_SIZE = 128
"""QEMU's own default."""

DEFAULT_QUEUES = 64
"""QEMU asks for one for each of the guest's processors, and refuses a back-end that has fewer."""

_log = logging.getLogger("vhost_user.blk")

_LOOK_SECONDS = 0.25
"""How often to look whether the disk has another size, or the file of faults other rules."""

_NOT_SEGMENTS = 2
"""Descriptors of a request beside its segments: header and status."""

_BATCH = 16
"""How many requests are completed together: the driver goes on with them while we do the next ones."""

_THREADS = 8
"""How many requests wait for the disk at a time."""


_FEATURES = (
    BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH | BlkFeature.TOPOLOGY | BlkFeature.CONFIG_WCE
)
_WRITING = BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES


class Blk(VirtioDevice):
    """A disk for a guest, from a raw file or a block device of the host.

    What the page cache can do at once is done in the loop's thread; what waits for the medium is
    done in threads, so that other requests, queues and messages need not wait for it.
    """

    device_id = DeviceId.BLOCK
    name = "blk"
    possible_features = _FEATURES | BlkFeature.MQ | BlkFeature.RO | _WRITING
    ring_features = RING_FEATURES | Feature.ACCESS_PLATFORM
    """QEMU shows the driver of a disk the latter with iommu_platform=on only."""
    drain_seconds = 60.0
    """As long as a slow disk may need: what is left undone is lost if the guest migrates."""

    def __init__(
        self,
        disk: Disk,
        *,
        num_queues: int | None = None,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        serial: str | None = None,
        faults: Iterable[Fault] = (),
        fault_file: FaultFile | None = None,
        lock: ImageLock | None = None,
    ) -> None:
        """Own `disk` from now on. `queue_size` is that of the driver's queues.

        `num_queues` is how many of them there can be, by default enough for most guests.

        `serial` has at most 20 characters of ASCII, and is by default the disk's own. `fault_file`
        replaces `faults` whenever it changes. `lock` is had while queues run, and let go of once a guest
        is migrated away. Raises ValueError.
        """
        self.num_queues = num_queues or DEFAULT_QUEUES
        self.features = _offered(disk, self.num_queues)
        self.faults = Faults(faults)
        """What is to go wrong; `faults.set()` changes it."""
        self._fault_file = fault_file
        self._lock = lock
        self._running = 0
        self._is_logged = False
        self._disk = disk
        self._executor = Executor(disk, disk.serial if serial is None else serial)
        self._seg_max = max(queue_size - _NOT_SEGMENTS, 1)
        self._told = OnceLogger(_log)
        self._writeback = True
        self._threads = trio.CapacityLimiter(_THREADS)
        self._own = Containment(_log)
        self._what = f"the disk {type(disk).__name__}"

    def close(self) -> None:
        """Close the disk."""
        self._executor.failures.settle(now=True)
        with self._own.code(self._what, "it was to be closed"):
            self._disk.close()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve one queue."""
        self._running += 1
        self._check_ring(queue)
        try:
            await self._until_locked(queue)
            await self._serve_queue(queue)
        finally:
            self._running -= 1
            self._hand_over()

    def _check_ring(self, queue: Virtqueue) -> None:
        """Say it where the driver will wait for ever for room for a request as long as it may be.

        The driver has read `seg_max` before anybody tells us how many entries the ring has.
        """
        needed = self._seg_max + _NOT_SEGMENTS
        limited = BlkFeature.SEG_MAX in self._executor.features
        if limited and Feature.INDIRECT_DESC not in queue.features and queue.size < needed:
            self._told.warning(
                f"queue {queue.index} has {queue.size} entries and no indirect descriptors, but the driver"
                f" was told of requests that take {needed}: it hangs at the first; start the back-end with"
                f" --queue-size {queue.size}, or QEMU's device with queue-size={needed} or indirect_desc=on"
            )

    async def _until_locked(self, queue: Virtqueue) -> None:
        """Wait until no other program uses the image, or the queue is to stop."""
        told = False
        with queue.until_stop():
            while self._lock is not None:
                try:
                    self._lock.take()
                    return
                except ImageInUseError as error:
                    if not told:
                        told = True
                        _log.error("queue %d waits: %s", queue.index, str(error))  # no traceback is kept
                await trio.sleep(_LOOK_SECONDS)

    def _hand_over(self) -> None:
        """Let go of the image where the guest stands still while it is migrated: it goes on elsewhere.

        While pages are logged, a front-end stops the queues for no other reason. Where the guest goes
        on here nevertheless, the image is locked again.
        """
        if self._lock is not None and self._is_logged and not self._running:
            self._lock.release()

    async def _serve_queue(self, queue: Virtqueue) -> None:
        async with trio.open_nursery() as nursery:
            async for batch in queue.batches(_BATCH):
                if self.faults.rules:
                    for chain in batch:
                        nursery.start_soon(self._serve_with_faults, queue, chain)
                elif left := self._serve_now(batch, queue):
                    share = -(-len(left) // _THREADS)
                    for first in range(0, len(left), share):
                        nursery.start_soon(self._serve, left[first : first + share])

    def _serve_now(self, batch: Sequence[Chain], queue: Virtqueue) -> list[Chain]:
        """Do what needs no waiting; return the others."""
        try:
            # Where writes have to reach the medium, none is complete once it is in the page cache.
            may_write = not (self._disk.read_only or self._executor.write_through)
            return transfer_now(self._disk, batch, queue, may_write=may_write)
        except Exception as error:
            self._own.failed(self._what, "requests are done one by one", error)
            return [chain for chain in batch if not chain.completed]

    async def run(self) -> None:
        """Look at the disk's size and the file of faults now and then."""
        while True:
            self.look()
            await trio.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Tell the driver if the disk's size has changed; take over the file of faults if that has.

        And the log of the failures that were left out of it.
        """
        self._executor.failures.settle()
        # A disk that is gone says so at every request.
        with self._own.code(self._what, "its size is not known", expected=OSError):
            if self._disk.measure():
                _log.info("the disk has %s now", plural(self._disk.size // SECTOR_SIZE, "sector"))
                self.notify_config_changed()
        if self._fault_file is not None and (faults := self._fault_file.changed()) is not None:
            self.faults.set(faults)

    def reset(self) -> None:
        """Forget what the driver turned on, and write back again."""
        self._is_logged = False
        self._executor.features = BlkFeature.NONE
        self._executor.write_through = False
        self._writeback = True

    def negotiated(self, features: Feature) -> None:
        """Adopt the features that the driver turned on."""
        self._is_logged = Feature.LOG_ALL in features
        self._executor.features = BlkFeature(features & self.features)
        self._choose_write_through()

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space, as it is now."""
        with self._own.code(self._what, "the driver is not told what the disk is like"):
            return self._config().encode()[offset : offset + size]
        raise RefusedError("the disk cannot be asked")

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        """Take `writeback`; refuse anything else."""
        if offset != WRITEBACK_OFFSET or data not in {b"\0", b"\1"}:
            raise RefusedError(
                f"{data.hex()} at {offset}: writeback alone, at {WRITEBACK_OFFSET}, can be changed to 0 or 1"
            )
        self._writeback = data == b"\1"
        self._choose_write_through()

    def _choose_write_through(self) -> None:
        """Decide when a write is complete: for a driver that does not flush, once it is on the medium."""
        turned_on = self._executor.features
        chosen = BlkFeature.CONFIG_WCE in turned_on and not self._writeback
        self._executor.write_through = chosen or BlkFeature.FLUSH not in turned_on

    def _config(self) -> BlkConfig:
        sizes = self._disk.block_sizes
        return BlkConfig(
            capacity=self._disk.size // SECTOR_SIZE,
            seg_max=self._seg_max,
            blk_size=sizes.logical,
            physical_block_exp=(sizes.physical // sizes.logical).bit_length() - 1,
            alignment_offset=sizes.alignment_offset // sizes.logical,
            min_io_size=sizes.minimum_io // sizes.logical,
            opt_io_size=sizes.optimal_io // sizes.logical,
            writeback=not self._executor.write_through,
            num_queues=self.num_queues,
            max_discard_sectors=MAX_DISCARD_SECTORS,
            max_discard_seg=MAX_SEGMENTS,
            discard_sector_alignment=sizes.logical // SECTOR_SIZE,
            max_write_zeroes_sectors=MAX_WRITE_ZEROES_SECTORS,
            max_write_zeroes_seg=MAX_SEGMENTS,
            write_zeroes_may_unmap=1,
        )

    async def _serve(self, chains: Sequence[Chain]) -> None:
        """Do requests one after the other in a thread, then complete them."""
        await run_in_thread(
            self._serve_all, chains, complain=self._complain_of_threads, limiter=self._threads
        )
        for chain in chains:
            chain.complete(chain.writable_length)

    def _complain_of_threads(self, reason: str) -> None:
        self._told.warning(f"{self._disk.name}: requests are done one by one: {reason}")

    def _serve_all(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            self._executor.serve(chain)

    async def _serve_with_faults(self, queue: Virtqueue, chain: Chain) -> None:
        request = self._executor.describe(chain)
        while request is not None and (fault := self._fault(request)) is not None:
            if (status := fault.action.status) is not None:
                write_response(chain, status)
                chain.complete(chain.writable_length)
                return
            if fault.action is Action.LATENCY:
                with queue.until_stop():  # a queue that is to stop is not held up
                    await trio.sleep(fault.seconds)
                break
            with queue.until_stop() as scope:
                await self.faults.changed()
            if scope.cancelled_caught:
                if self._is_logged:
                    break  # the guest goes elsewhere, which does not know of this request
                chain.put_back()
                return
        await self._serve([chain])

    def _fault(self, request: Request) -> Fault | None:
        with self._own.code("a fault", "the guest's request gets an error"):
            return self.faults.take(request)
        return Fault(Action.ERROR)


def _offered(disk: Disk, num_queues: int) -> BlkFeature:
    features = _FEATURES
    if num_queues > 1:
        features |= BlkFeature.MQ
    if disk.read_only:
        return features | BlkFeature.RO
    return features | _WRITING

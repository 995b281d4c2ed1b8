"""Handlers: guest memory, its IOMMU, and the log of what was written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.io import EventFd
from protocol.vhost_user import (
    AddMemReg,
    GetMaxMemSlots,
    IotlbMsg,
    IotlbType,
    RemMemReg,
    SetLogBase,
    SetLogFd,
    SetMemTable,
)
from protocol.vhost_user.validation import RefusedError
from vhost_user.backend.handlers.registration import handles
from vhost_user.backend.state import MAX_MEMORY_SLOTS
from vhost_user.memory.dirty_log import DirtyLog
from vhost_user.memory.regions import Region

if TYPE_CHECKING:
    from protocol.vhost_user import MemoryRegion
    from vhost_user.backend.state import Backend


def _region(described: MemoryRegion) -> Region:
    return Region(described.guest_address, described.size, described.user_address, described.mmap_offset)


@handles(SetMemTable)
async def set_mem_table(backend: Backend, request: SetMemTable) -> None:
    """Replace all memory; queues that run find their rings again."""
    regions = (_region(each) for each in request.regions)
    backend.repeated_regions.clear()
    backend.memory.set_table(list(zip(regions, request.take_fds(), strict=True)))
    backend.memory_changed()


@handles(GetMaxMemSlots)
async def get_max_mem_slots(backend: Backend, request: GetMaxMemSlots) -> int:
    """Say how many regions we can have."""
    return MAX_MEMORY_SLOTS


@handles(AddMemReg)
async def add_mem_reg(backend: Backend, request: AddMemReg) -> None:
    """Add a region. One that is there already is noted: QEMU 7.2 asks once for each pair of net's queues."""
    region = _region(request.region)
    if region in backend.memory:
        backend.repeated_regions[region.place] += 1
        return
    if len(backend.memory) >= MAX_MEMORY_SLOTS:
        raise RefusedError(f"there are {MAX_MEMORY_SLOTS} memory regions already")
    (fd,) = request.take_fds()
    backend.memory.add(region, fd)
    backend.memory_changed()


@handles(RemMemReg)
async def rem_mem_reg(backend: Backend, request: RemMemReg) -> None:
    """Remove a region, the last time that it is asked for where it was added more than once."""
    region = _region(request.region)
    if backend.repeated_regions[region.place]:
        backend.repeated_regions[region.place] -= 1
        return
    backend.memory.remove(region)
    backend.memory_changed()


@handles(IotlbMsg)
async def iotlb_msg(backend: Backend, request: IotlbMsg) -> None:
    """Note or forget a translation."""
    if request.type is IotlbType.UPDATE:
        backend.memory.update_iotlb(request.iova, request.size, request.user_address, int(request.permission))
    elif request.type is IotlbType.INVALIDATE:
        backend.memory.invalidate_iotlb(request.iova, request.size)
    else:
        raise RefusedError("only a back-end reports misses and failures")
    backend.iotlb_changed()


@handles(SetLogBase)
async def set_log_base(backend: Backend, request: SetLogBase) -> None:
    """Use another dirty log."""
    (fd,) = request.take_fds()
    backend.log = DirtyLog(fd, request.size, request.offset)
    backend.use_log()


@handles(SetLogFd)
async def set_log_fd(backend: Backend, request: SetLogFd) -> None:
    """Signal this eventfd when the dirty log has changed."""
    (fd,) = request.take_fds()
    if backend.log_event is not None:
        backend.log_event.close()
    backend.log_event = EventFd(fd.detach())

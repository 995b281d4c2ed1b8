"""Handlers: guest memory, its IOMMU, and the log of writes to it."""

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
from vhost_user.backend.handlers.registration import register
from vhost_user.backend.state import MAX_MEMORY_SLOTS
from vhost_user.memory.dirty_log import DirtyLog
from vhost_user.memory.regions import Region

if TYPE_CHECKING:
    from protocol.vhost_user import MemoryRegion
    from vhost_user.backend.state import ConnectionState


def _region(described: MemoryRegion) -> Region:
    return Region(described.guest_address, described.size, described.user_address, described.mmap_offset)


@register(SetMemTable)
async def set_mem_table(state: ConnectionState, request: SetMemTable) -> None:
    """Replace all memory; queues that run find their rings again."""
    table = []
    for described, fd in zip(request.regions, request.take_fds(), strict=True):
        table.append((_region(described), fd))
    state.repeated_regions.clear()
    state.memory.set_table(table)
    state.memory_changed()


@register(GetMaxMemSlots)
async def get_max_mem_slots(state: ConnectionState, request: GetMaxMemSlots) -> int:
    """Return how many regions there may be."""
    return MAX_MEMORY_SLOTS


@register(AddMemReg)
async def add_mem_reg(state: ConnectionState, request: AddMemReg) -> None:
    """Add a region. One that is there already is counted: QEMU 7.2 asks once a pair of queues of net."""
    region = _region(request.region)
    if region in state.memory:
        state.repeated_regions[region.place] += 1
        return
    if len(state.memory) >= MAX_MEMORY_SLOTS:
        raise RefusedError(f"there are {MAX_MEMORY_SLOTS} memory regions already")
    (fd,) = request.take_fds()
    state.memory.add(region, fd)
    state.memory_changed()


@register(RemMemReg)
async def rem_mem_reg(state: ConnectionState, request: RemMemReg) -> None:
    """Remove a region; one that was added more than once, with the last of these requests."""
    region = _region(request.region)
    if state.repeated_regions[region.place]:
        state.repeated_regions[region.place] -= 1
        return
    state.memory.remove(region)
    state.memory_changed()


@register(IotlbMsg)
async def iotlb_msg(state: ConnectionState, request: IotlbMsg) -> None:
    """Store or remove a translation."""
    if request.type is IotlbType.UPDATE:
        state.memory.update_iotlb(request.iova, request.size, request.user_address, int(request.permission))
    elif request.type is IotlbType.INVALIDATE:
        state.memory.invalidate_iotlb(request.iova, request.size)
    else:
        raise RefusedError("only a back-end reports misses and failures")
    state.iommu.changed()


@register(SetLogBase)
async def set_log_base(state: ConnectionState, request: SetLogBase) -> None:
    """Use another dirty log."""
    (fd,) = request.take_fds()
    state.dirty.log = DirtyLog(fd, request.size, request.offset)
    state.use_log()


@register(SetLogFd)
async def set_log_fd(state: ConnectionState, request: SetLogFd) -> None:
    """Signal this eventfd when the dirty log has changed."""
    (fd,) = request.take_fds()
    state.dirty.set_event(EventFd(fd.detach()))

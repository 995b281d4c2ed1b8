"""One message of each class, without descriptors, for inputs and for requests."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING
from uuid import UUID

from protocol import vhost_user as vu
from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import DeviceStatus, Feature

if TYPE_CHECKING:
    from protocol.vhost_user import Reply, Request

ALL_FEATURES = reduce(or_, Feature)
ALL_PROTOCOL = reduce(or_, ProtocolFeature).without(ProtocolFeature.XEN_MMAP)
RW = vu.Permission.READ | vu.Permission.WRITE
OBJECT = UUID(int=0x1234)
REGION = vu.MemoryRegion(0, 0x2400, 0x7F00_0000_0000, 0x1800)

FRONTEND: tuple[Request, ...] = (
    vu.GetFeatures(),
    vu.SetFeatures(ALL_FEATURES),
    vu.SetOwner(),
    vu.ResetOwner(),
    vu.SetMemTable((REGION,)),
    vu.SetLogBase(64, 0),
    vu.SetLogFd(),
    vu.SetVringNum(0, 8),
    vu.SetVringAddr(0, vu.VringAddressFlag.LOG, 0, 0x7F00_0000_0100, 0x7F00_0000_0080, 0x100),
    vu.SetVringBase(0, 0),
    vu.GetVringBase(0),
    vu.SetVringKick(0),
    vu.SetVringCall(0),
    vu.SetVringErr(0, no_fd=True),
    vu.GetProtocolFeatures(),
    vu.SetProtocolFeatures(ALL_PROTOCOL),
    vu.GetQueueNum(),
    vu.SetVringEnable(0, True),
    vu.SendRarp(bytes(6)),
    vu.NetSetMtu(1500),
    vu.SetBackendReqFd(),
    vu.IotlbMsg(0, 0x1000, 0x7F00_0000_0000, RW, vu.IotlbType.UPDATE),
    vu.SetVringEndian(0, False),
    vu.GetConfig(0, 8),
    vu.SetConfig(0, b"\1", vu.ConfigFlag.DRIVER),
    vu.CreateCryptoSession(bytes(16)),
    vu.CloseCryptoSession(1),
    vu.PostcopyAdvise(),
    vu.PostcopyListen(),
    vu.PostcopyEnd(),
    vu.GetInflightFd(0, 0, 2, 8),
    vu.SetInflightFd(0x200, 0, 2, 8),
    vu.GpuSetSocket(),
    vu.ResetDevice(),
    vu.VringKick(0),
    vu.GetMaxMemSlots(),
    vu.AddMemReg(REGION),
    vu.RemMemReg(REGION),
    vu.SetStatus(DeviceStatus.DRIVER_OK),
    vu.GetStatus(),
    vu.GetSharedObject(OBJECT),
    vu.SetDeviceStateFd(vu.TransferDirection.SAVE, vu.MigrationPhase.STOPPED),
    vu.CheckDeviceState(),
    vu.GetShmemConfig(),
    vu.GetVringBaseSkipDrain(0),
)

BACKEND: tuple[Request, ...] = (
    vu.BackendIotlbMsg(0, 1, 0, RW, vu.IotlbType.MISS),
    vu.ConfigChange(),
    vu.VringHostNotifier(0, True, 0, 0),
    vu.VringCall(0),
    vu.VringErr(0),
    vu.SharedObjectAdd(OBJECT),
    vu.SharedObjectRemove(OBJECT),
    vu.SharedObjectLookup(OBJECT),
    vu.ShmemMap(0, 0, 0, 0x1000, vu.MapFlag.READ_WRITE),
    vu.ShmemUnmap(0, 0, 0, 0x1000),
)

REPLIES: tuple[Reply, ...] = (
    vu.Ack(0),
    vu.Features(ALL_FEATURES),
    vu.ProtocolFeatures(ALL_PROTOCOL),
    vu.Number(8),
    vu.Status(DeviceStatus.DRIVER_OK),
    vu.VringBase(0, 5),
    vu.Config(0, bytes(8)),
    vu.CryptoSession(bytes(16)),
    vu.UserFault(),
    vu.Inflight(0x200, 0, 2, 8),
    vu.SharedObject(),
    vu.LookedUpObject(0),
    vu.TransferChannel(),
    vu.SharedMemory((0x10000,)),
    vu.MappedTable((REGION,)),
    vu.MappedRegion(REGION),
)

_REPLY_OF = {type(reply): reply for reply in REPLIES}


def answer_to(request: Request, kind: type[Reply]) -> Reply:
    """Return a reply of this class that suits `request`; it owns no descriptors."""
    if isinstance(request, (vu.GetVringBase, vu.GetVringBaseSkipDrain)) and kind is vu.VringBase:
        return vu.VringBase(request.index, 5)
    if isinstance(request, vu.GetConfig) and kind is vu.Config:
        return vu.Config(request.offset, bytes(request.size), request.flags)
    return _REPLY_OF[kind]

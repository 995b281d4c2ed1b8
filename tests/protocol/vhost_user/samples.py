"""Strategies for all messages of vhost-user: any values that fit the fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from protocol.vhost_user import (
    MAX_CONFIG_SIZE,
    MAX_TABLE_REGIONS,
    Ack,
    AddMemReg,
    BackendIotlbMsg,
    CheckDeviceState,
    CloseCryptoSession,
    Config,
    ConfigChange,
    ConfigFlag,
    CreateCryptoSession,
    CryptoSession,
    Features,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    GetSharedObject,
    GetShmemConfig,
    GetStatus,
    GetVringBase,
    GetVringBaseSkipDrain,
    GpuSetSocket,
    Inflight,
    IotlbMsg,
    IotlbType,
    LookedUpObject,
    MapFlag,
    MappedRegion,
    MappedTable,
    MemoryRegion,
    Message,
    MigrationPhase,
    NetSetMtu,
    Number,
    Permission,
    PostcopyAdvise,
    PostcopyEnd,
    PostcopyListen,
    ProtocolFeature,
    ProtocolFeatures,
    RemMemReg,
    Reply,
    Request,
    ResetDevice,
    ResetOwner,
    SendRarp,
    SetBackendReqFd,
    SetConfig,
    SetDeviceStateFd,
    SetFeatures,
    SetInflightFd,
    SetLogBase,
    SetLogFd,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetStatus,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringEndian,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    SharedMemory,
    SharedObject,
    SharedObjectAdd,
    SharedObjectLookup,
    SharedObjectRemove,
    ShmemMap,
    ShmemUnmap,
    Status,
    TransferChannel,
    TransferDirection,
    UserFault,
    VringAddressFlag,
    VringBase,
    VringCall,
    VringErr,
    VringHostNotifier,
    VringKick,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.protocol.vhost_user.wire import ALL_FEATURES, ALL_PROTOCOL, new_fds

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

U8 = st.integers(0, 2**8 - 1)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)

REGIONS = st.builds(MemoryRegion, U64, U64, U64, U64)
TABLES = st.lists(REGIONS, max_size=MAX_TABLE_REGIONS).map(tuple)
CONFIG_FLAGS = U32.map(ConfigFlag)

_IOTLB = (U64, U64, U64, U8.map(Permission), st.sampled_from(IotlbType))
_INFLIGHT = (U64, U64, U16, U16)
_MAPPING = (U8, U64, U64, U64, U64.map(MapFlag))
_RAW = st.binary(max_size=4096)

FIELDS: dict[type[Message], tuple[SearchStrategy[Any], ...]] = {
    # front-end requests
    GetFeatures: (),
    SetFeatures: (U64.map(lambda bits: Feature(bits) & ALL_FEATURES),),
    SetOwner: (),
    ResetOwner: (),
    SetMemTable: (TABLES,),
    SetLogBase: (U64, U64),
    SetLogFd: (),
    SetVringNum: (U32, U32),
    SetVringAddr: (U32, U32.map(VringAddressFlag), U64, U64, U64, U64),
    SetVringBase: (U32, U32),
    GetVringBase: (U32,),
    SetVringKick: (U8, st.booleans()),
    SetVringCall: (U8, st.booleans()),
    SetVringErr: (U8, st.booleans()),
    GetProtocolFeatures: (),
    SetProtocolFeatures: (
        U64.map(lambda bits: (ProtocolFeature(bits) & ALL_PROTOCOL) | ProtocolFeature(0b101000)),
    ),
    GetQueueNum: (),
    SetVringEnable: (U32, st.booleans()),
    SendRarp: (st.binary(min_size=6, max_size=6),),
    NetSetMtu: (U64,),
    SetBackendReqFd: (),
    IotlbMsg: _IOTLB,
    SetVringEndian: (U32, st.booleans()),
    GetConfig: (U32, st.integers(0, MAX_CONFIG_SIZE), CONFIG_FLAGS),
    SetConfig: (U32, st.binary(max_size=MAX_CONFIG_SIZE), CONFIG_FLAGS),
    CreateCryptoSession: (_RAW,),
    CloseCryptoSession: (U64,),
    PostcopyAdvise: (),
    PostcopyListen: (),
    PostcopyEnd: (),
    GetInflightFd: _INFLIGHT,
    SetInflightFd: _INFLIGHT,
    GpuSetSocket: (),
    ResetDevice: (),
    VringKick: (U32,),
    GetMaxMemSlots: (),
    AddMemReg: (REGIONS,),
    RemMemReg: (REGIONS,),
    SetStatus: (U64.map(DeviceStatus),),
    GetStatus: (),
    GetSharedObject: (st.uuids(),),
    SetDeviceStateFd: (st.sampled_from(TransferDirection), st.sampled_from(MigrationPhase)),
    CheckDeviceState: (),
    GetShmemConfig: (),
    GetVringBaseSkipDrain: (U32,),
    # back-end requests
    BackendIotlbMsg: _IOTLB,
    ConfigChange: (),
    VringHostNotifier: (U8, st.booleans(), U64, U64),
    VringCall: (U32,),
    VringErr: (U32,),
    SharedObjectAdd: (st.uuids(),),
    SharedObjectRemove: (st.uuids(),),
    SharedObjectLookup: (st.uuids(),),
    ShmemMap: _MAPPING,
    ShmemUnmap: _MAPPING,
    # replies
    Ack: (U64,),
    Features: (U64.map(Feature),),
    ProtocolFeatures: (U64.map(ProtocolFeature),),
    Number: (U64,),
    Status: (U64.map(DeviceStatus),),
    VringBase: (U32, U32),
    Config: (U32, st.binary(max_size=MAX_CONFIG_SIZE), CONFIG_FLAGS),
    CryptoSession: (_RAW,),
    UserFault: (),
    Inflight: _INFLIGHT,
    SharedObject: (),
    LookedUpObject: (U64,),
    TransferChannel: (U8, st.booleans()),
    SharedMemory: (st.lists(U64, max_size=256).map(tuple),),
    MappedTable: (TABLES,),
    MappedRegion: (REGIONS,),
}
"""The fields of every message class, in order."""


def _matching(request: Request, reply: Reply) -> Reply:
    """Make `reply` one to `request`, where it repeats something of it."""
    if isinstance(request, GetVringBase) and isinstance(reply, VringBase):
        reply.index = request.index
    if isinstance(request, GetConfig) and isinstance(reply, Config):
        reply.offset, reply.data = request.offset, reply.data.ljust(request.size, b"\0")[: request.size]
    return reply


def messages(kind: type[Message]) -> SearchStrategy[Message]:
    """Return a strategy for messages of this class, without descriptors."""
    build: Callable[..., Message] = kind
    return st.builds(build, *FIELDS[kind])


def replies(request: Request) -> SearchStrategy[Reply]:
    """Return a strategy for replies to `request`, without descriptors."""
    build: Callable[..., Reply] = request.reply
    return st.builds(build, *FIELDS[request.reply]).map(lambda reply: _matching(request, reply))


def draw(kind: type[Request], data: st.DataObject) -> Request:
    """Return any message of this class, with as many descriptors as it may have."""
    message = data.draw(messages(kind))
    assert isinstance(message, Request)
    message.fds = new_fds(max(message.allowed_fds()))
    return message

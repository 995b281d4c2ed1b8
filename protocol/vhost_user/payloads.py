"""Payload layouts of vhost-user messages, native byte order, by their names in the specification.

QEMU docs/interop/vhost-user.rst, "Payload". Two structures are padded on the wire, because every
implementation sends the C structure as its compiler lays it out: IOTLB (26 bytes, 32 on the wire)
and inflight (20, 24 on the wire). Both sizes are understood, the padded one is sent.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from construct import (
    Adapter,
    Array,
    Bytes,
    Const,
    Construct,
    ConstructError,
    Container,
    ExprAdapter,
    GreedyBytes,
    If,
    Int8un,
    Int16un,
    Int32un,
    Int64un,
    Optional,
    Padding,
    Rebuild,
    Struct,
    Terminated,
    len_,
    this,
)

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.values import (
    MAX_CONFIG_SIZE,
    MAX_SHARED_MEMORY_REGIONS,
    MAX_TABLE_REGIONS,
    ConfigFlag,
    IotlbType,
    MapFlag,
    MemoryRegion,
    MigrationPhase,
    Permission,
    TransferDirection,
    VringAddressFlag,
    XenMapFlag,
    XenMapping,
)
from protocol.virtio.features import Feature
from protocol.virtio.status import DeviceStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

MAX_PAYLOAD = 4096
"""Most bytes that we accept as a payload; the largest that is defined is GET_SHMEM_CONFIG's, 2056."""

NUMBER_MASK = 0xFF
NO_FD = 1 << 8
"""Of a 64-bit word that says whose a file descriptor is: the index of a vring; that none comes."""


@dataclass(frozen=True)
class Payload:
    """A layout with the sizes in bytes that it may have, with and without XEN_MMAP negotiated."""

    name: str
    layout: Construct
    sizes: Collection[int]
    xen_sizes: Collection[int] | None = None

    def fits(self, size: int, xen: bool) -> bool:
        """Return whether a payload of `size` bytes can be one of these."""
        return size in (self.xen_sizes if xen and self.xen_sizes is not None else self.sizes)

    def parse(self, data: bytes, xen: bool = False) -> dict[str, Any]:
        """Return the fields by name. Raises ValueError for what is none of these."""
        try:
            parsed = self.layout.parse(data, xen=xen)
        except ConstructError as error:
            raise ValueError(_first_line(error)) from None
        return {} if parsed is None else {k: v for k, v in parsed.items() if not k.startswith("_")}

    def build(self, values: Mapping[str, Any], xen: bool = False) -> bytes:
        """Return the bytes. Raises ValueError where a value does not fit."""
        try:
            built: bytes = self.layout.build(dict(values), xen=xen)
        except ConstructError as error:
            raise ValueError(_first_line(error)) from None
        return built


def _first_line(error: ConstructError) -> str:
    """Construct puts the path of the field on the first line, what was wrong on the second."""
    return ", ".join(str(error).split("\n")[:2])


def _typed(layout: Construct, type_: Callable[[Any], Any], back: Callable[[Any], Any] = int) -> Construct:
    """Return a layout whose value is a `type_`, made from a plain one; `back` makes it plain again."""
    return ExprAdapter(layout, decoder=lambda plain, _: type_(plain), encoder=lambda value, _: back(value))


class _Record(Adapter):  # type: ignore[misc]  # construct has no types
    """A Struct whose value is an object of the dataclass `type_`, field by field."""

    def __init__(self, type_: type[Any], *layout: Construct) -> None:
        super().__init__(Struct(*layout))
        self._type = type_

    def _decode(self, parsed: Container, _context: Container, _path: str) -> Any:
        return self._type(**{field.name: parsed[field.name] for field in fields(self._type)})

    def _encode(self, value: Any, _context: Container, _path: str) -> dict[str, Any]:
        if not isinstance(value, self._type):
            raise ValueError(f"{value!r} is no {self._type.__name__}")
        return {field.name: getattr(value, field.name) for field in fields(self._type)}


class _FdWord(Adapter):  # type: ignore[misc]  # construct has no types
    """A Struct that begins with a 64-bit word: a number of eight bits, and whether no descriptor comes."""

    def __init__(self, name: str, *rest: Construct) -> None:
        super().__init__(Struct("word" / Int64un, *rest))
        self._name = name

    def _decode(self, parsed: Container, _context: Container, _path: str) -> Container:
        return Container(
            parsed, **{self._name: parsed.word & NUMBER_MASK, "no_fd": bool(parsed.word & NO_FD)}
        )

    def _encode(self, values: dict[str, Any], _context: Container, _path: str) -> dict[str, Any]:
        number: int = values[self._name]
        if not 0 <= number <= NUMBER_MASK:
            raise ValueError(f"{self._name} {number} is not in 0..{NUMBER_MASK}")
        return {**values, "word": number | (NO_FD if values["no_fd"] else 0)}


def _word(name: str, type_: Callable[[Any], Any] | None = None) -> Payload:
    """Return the 64-bit payload whose one field is `name`."""
    layout = Int64un if type_ is None else _typed(Int64un, type_)
    return Payload("u64", Struct(name / layout), {8})


_XEN = _Record(XenMapping, "flags" / _typed(Int32un, XenMapFlag), "domain" / Int32un)

_REGION = _Record(
    MemoryRegion,
    "guest_address" / Int64un,
    "size" / Int64un,
    "user_address" / Int64un,
    "mmap_offset" / Int64un,
    "xen" / If(this._root._params.xen, _XEN),
)

_PAIR = Struct("index" / Int32un, "num" / Int32un)

EMPTY = Payload("none", Struct(), {0})
VALUE = _word("value")
FEATURES = _word("features", Feature)
PROTOCOL_FEATURES = _word("features", ProtocolFeature)
STATUS = _word("status", DeviceStatus)
MTU = _word("mtu")
SESSION = _word("session")
MAC = Payload("u64", Struct("mac" / Bytes(6), Padding(2)), {8})
VRING_FD = Payload("u64", _FdWord("index"), {8})
TRANSFER_RESULT = Payload("u64", _FdWord("error"), {8})

VRING_STATE = Payload("vring state", _PAIR, {8})
VRING_BASE = Payload("vring state", Struct("index" / Int32un, "base" / Int32un), {8})
VRING_ONLY = Payload("vring state", Struct("index" / Int32un, "num" / Rebuild(Int32un, 0)), {8})
VRING_ENABLE = Payload("vring state", Struct("index" / Int32un, "enable" / _typed(Int32un, bool)), {8})


def _endian(number: int) -> bool:
    if number > 1:
        raise ValueError(f"{number} is no endianness: 0 is little, 1 is big")
    return bool(number)


VRING_ENDIAN = Payload("vring state", Struct("index" / Int32un, "big" / _typed(Int32un, _endian)), {8})

VRING_ADDRESS = Payload(
    "vring address",
    Struct(
        "index" / Int32un,
        "flags" / _typed(Int32un, VringAddressFlag),
        "descriptor" / Int64un,
        "used" / Int64un,
        "available" / Int64un,
        "log" / Int64un,
    ),
    {40},
)

MEMORY_TABLE = Payload(
    "memory regions",
    Struct(
        "count" / Rebuild(Int32un, len_(this.regions)),
        Padding(4),
        "regions" / _typed(Array(this.count, _REGION), tuple, list),
        # User Mode Linux always sends room for two, whatever the count: what is behind them is ignored.
    ),
    range(8, 8 + 32 * MAX_TABLE_REGIONS + 1, 32),
    range(8, 8 + 40 * MAX_TABLE_REGIONS + 1, 40),
)

SINGLE_REGION = Payload("single memory region", Struct(Padding(8), "region" / _REGION), {40}, {48})

LOG = Payload("log", Struct("size" / Int64un, "offset" / Int64un), {16})

IOTLB = Payload(
    "iotlb",
    Struct(
        "iova" / Int64un,
        "size" / Int64un,
        "user_address" / Int64un,
        "permission" / _typed(Int8un, Permission),
        "type" / _typed(Int8un, IotlbType),
        Optional(Const(bytes(6))),
    ),
    {26, 32},
)

INFLIGHT = Payload(
    "inflight",
    Struct(
        "mmap_size" / Int64un,
        "mmap_offset" / Int64un,
        "num_queues" / Int16un,
        "queue_size" / Int16un,
        Optional(Const(bytes(4))),
    ),
    {20, 24},
)


def _config_size(size: int) -> int:
    if size > MAX_CONFIG_SIZE:
        raise ValueError(f"{size} bytes of configuration space are more than {MAX_CONFIG_SIZE}")
    return size


_CONFIG_SIZES = range(12, 12 + MAX_CONFIG_SIZE + 1)

CONFIG_QUERY = Payload(
    "configuration space",
    Struct(
        "offset" / Int32un,
        "size" / _typed(Int32un, _config_size, _config_size),
        "flags" / _typed(Int32un, ConfigFlag),
        Padding(this.size),
        Terminated,
    ),
    _CONFIG_SIZES,
)

CONFIG = Payload(
    "configuration space",
    Struct(
        "offset" / Int32un,
        "size" / Rebuild(Int32un, len_(this.data)),
        "flags" / _typed(Int32un, ConfigFlag),
        "data" / Bytes(this.size),
        Terminated,
    ),
    _CONFIG_SIZES,
)

VRING_AREA = Payload("vring area", _FdWord("index", "size" / Int64un, "offset" / Int64un), {24})

RAW = Payload("crypto session", Struct("data" / GreedyBytes), range(MAX_PAYLOAD + 1))

SHARED_OBJECT = Payload(
    "shared object",
    Struct("uuid" / _typed(Bytes(16), lambda raw: uuid.UUID(bytes=raw), lambda value: value.bytes)),
    {16},
)

TRANSFER = Payload(
    "device state transfer",
    Struct("direction" / _typed(Int32un, TransferDirection), "phase" / _typed(Int32un, MigrationPhase)),
    {8},
)

MAPPING = Payload(
    "mmap",
    Struct(
        "shmid" / Int8un,
        Padding(7),
        "fd_offset" / Int64un,
        "shm_offset" / Int64un,
        "size" / Int64un,
        "flags" / _typed(Int64un, MapFlag),
    ),
    {40},
)

SHARED_MEMORY = Payload(
    "shared memory configuration",
    Struct(
        "count" / Rebuild(Int32un, lambda context: sum(size > 0 for size in context.sizes)),
        Padding(4),
        "sizes" / _typed(Array(MAX_SHARED_MEMORY_REGIONS, Int64un), tuple, list),
    ),
    {8 + 8 * MAX_SHARED_MEMORY_REGIONS},
)

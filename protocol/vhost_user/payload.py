"""Payloads of messages: a layout with its sizes, and parts for layouts.

QEMU docs/interop/vhost-user.rst, "Payload"; numbers are in the machine's byte order. Two structures are
padded on the wire, because every implementation sends the C structure as its compiler lays it out: IOTLB
(26 bytes, 32 on the wire) and inflight (20, 24 on the wire). Both sizes are understood, the padded one is
sent. The layout of a message stands with the message, in `protocol.vhost_user.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from construct import (
    Adapter,
    Construct,
    ConstructError,
    Container,
    ExprAdapter,
    Int64un,
    Struct,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

MAX_PAYLOAD = 4096
"""Largest payload that is accepted, in bytes; the largest one defined is GET_SHMEM_CONFIG's, 2056."""

NUMBER_MASK = 0xFF
NO_FD = 1 << 8
"""Of a 64-bit word that goes with a file descriptor: the number it belongs to; that none comes."""


@dataclass(frozen=True)
class Payload:
    """A layout with the sizes in bytes that it may have, with and without XEN_MMAP negotiated."""

    name: str
    layout: Construct
    sizes: Collection[int]
    xen_sizes: Collection[int] | None = None

    def fits(self, size: int, xen: bool) -> bool:
        """Return whether a payload of this layout may have `size` bytes."""
        return size in (self.xen_sizes if xen and self.xen_sizes is not None else self.sizes)

    def parse(self, data: bytes, xen: bool = False) -> Mapping[str, Any]:
        """Return the parts of the layout by name, the fields of a message among them.

        Raises ValueError, in one line, if the bytes do not fit the layout.
        """
        try:
            parsed: Mapping[str, Any] = self.layout.parse(data, xen=xen)
        except ConstructError as error:
            raise ValueError(_first_line(error)) from None
        return parsed

    def build(self, values: Mapping[str, Any], xen: bool = False) -> bytes:
        """Return the bytes. Raises ValueError, in one line, if a value does not fit its field."""
        try:
            built: bytes = self.layout.build(dict(values), xen=xen)
        except ConstructError as error:
            raise ValueError(_first_line(error)) from None
        return built


def _first_line(error: ConstructError) -> str:
    """Return construct's message in one line: the path of the field, and the fault."""
    return ", ".join(str(error).split("\n")[:2])


def typed(layout: Construct, type_: Callable[[Any], Any], back: Callable[[Any], Any] = int) -> Construct:
    """Return a layout whose value is converted by `type_` when parsed, and by `back` when built."""
    return ExprAdapter(layout, decoder=lambda plain, _: type_(plain), encoder=lambda value, _: back(value))


class Record(Adapter):  # type: ignore[misc]  # construct has no types
    """A Struct whose value is an object of the dataclass `type_`, field by field."""

    def __init__(self, type_: type[Any], *layout: Construct) -> None:
        super().__init__(Struct(*layout))
        self._type = type_
        self._names = [field.name for field in fields(type_)]

    def _decode(self, parsed: Container, _context: Container, _path: str) -> Any:
        return self._type(*[parsed[name] for name in self._names])

    def _encode(self, value: Any, _context: Container, _path: str) -> dict[str, Any]:
        if not isinstance(value, self._type):
            raise ValueError(f"{value!r} is not a {self._type.__name__}")
        return {name: getattr(value, name) for name in self._names}


class FdWord(Adapter):  # type: ignore[misc]  # construct has no types
    """A Struct that begins with a 64-bit word: a number of eight bits, and whether no descriptor comes.

    Its value has the number under the name given, and `no_fd`.
    """

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


def word(name: str, type_: Callable[[Any], Any] | None = None) -> Payload:
    """Return a 64-bit payload with the one field `name`."""
    layout = Int64un if type_ is None else typed(Int64un, type_)
    return Payload("u64", Struct(name / layout), {8})


EMPTY = Payload("none", Struct(), {0})
VALUE = word("value")

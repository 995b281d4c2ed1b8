"""Configuration spaces of device types, as dataclasses and as bytes."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from construct import Construct, ConstructError

from protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class ConfigSpace:
    """The base of a frozen dataclass with the fields of `layout` (virtio 1.3, section 2.5)."""

    layout: ClassVar[Construct]
    owner: ClassVar[str]
    """The device, for error messages: "a block device"."""

    def encode(self: DataclassInstance) -> bytes:
        """Return the configuration space's bytes. Raises LocalProtocolError for a field that does not fit."""
        layout: Any = type(self).layout  # type: ignore[attr-defined]  # of a subclass, which is a dataclass
        try:
            data: bytes = layout.build(asdict(self))
        except ConstructError as error:
            raise LocalProtocolError(f"{self} does not fit into the configuration space: {error}") from error
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return a device's configuration space. Raises RemoteProtocolError for too few bytes."""
        try:
            parsed = cls.layout.parse(data)
        except ConstructError as error:
            raise RemoteProtocolError(f"not a configuration space of {cls.owner}: {error}") from error
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})  # type: ignore[arg-type]

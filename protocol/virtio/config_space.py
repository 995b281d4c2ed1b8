"""Configuration spaces: what a type of device shows of itself, as a dataclass and as bytes."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from construct import Construct, ConstructError

from protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class ConfigSpace:
    """The base of a frozen dataclass whose fields `layout` has, by their names (virtio 1.2, section 2.5)."""

    layout: ClassVar[Construct]
    owner: ClassVar[str]
    """Whose it is, for messages: "a block device"."""

    def encode(self: DataclassInstance) -> bytes:
        """Return the configuration space's bytes. Raises LocalProtocolError for a field that does not fit."""
        layout: Any = type(self).layout  # type: ignore[attr-defined]  # of a subclass, which is a dataclass
        try:
            data: bytes = layout.build(asdict(self))
        except ConstructError as error:
            raise LocalProtocolError(f"{self} does not fit the configuration space: {error}") from error
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the fields that a device shows. Raises RemoteProtocolError for bytes too few."""
        try:
            parsed = cls.layout.parse(data)
        except ConstructError as error:
            raise RemoteProtocolError(f"no configuration space of {cls.owner}: {error}") from error
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})  # type: ignore[arg-type]

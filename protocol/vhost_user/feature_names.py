"""The names of a device's feature bits: its type's, its rings', vhost-user's."""

from __future__ import annotations

import functools
import re
from enum import IntFlag
from types import MappingProxyType
from typing import TYPE_CHECKING

from protocol.vhost_user.features import ProtocolFeature
from protocol.virtio.blk import BlkFeature
from protocol.virtio.console import ConsoleFeature
from protocol.virtio.features import Feature
from protocol.virtio.gpio import GpioFeature
from protocol.virtio.i2c import I2cFeature
from protocol.virtio.ids import DeviceId
from protocol.virtio.net import NetFeature
from protocol.virtio.vsock import VsockFeature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from protocol.virtio.bits import Bits

DEVICE_FEATURES: Mapping[DeviceId, type[Bits]] = MappingProxyType(
    {
        DeviceId.BLOCK: BlkFeature,
        DeviceId.CONSOLE: ConsoleFeature,
        DeviceId.GPIO: GpioFeature,
        DeviceId.I2C_ADAPTER: I2cFeature,
        DeviceId.NET: NetFeature,
        DeviceId.VSOCK: VsockFeature,
    }
)
"""Bits 0 to 23 and 50 to 127 of a device type. Types without bits, such as RNG and INPUT, are absent."""

_SHORT = {DeviceId.BLOCK: "BLK", DeviceId.I2C_ADAPTER: "I2C"}


def short_name(device: DeviceId) -> str:
    """Return the type's name in the names of its features: NET in VIRTIO_NET_F_MAC."""
    return _SHORT.get(device, device.name)


_BIT = re.compile(r"\bbit (\d+)\b")

_SHARED = ("VIRTIO", "VIRTIO_RING", "VHOST", "VHOST_USER")
"""The prefixes of features that all types share, as in VIRTIO_RING_F_EVENT_IDX."""

_PROTOCOL = "VHOST_USER_PROTOCOL"


class FeatureNames:
    """The names of one device type's features."""

    def __init__(self, device: DeviceId, flags: type = int) -> None:
        """`flags`, an IntFlag, has the names of a type that this project does not know."""
        is_own = issubclass(flags, IntFlag) and flags is not Feature
        self._own = DEVICE_FEATURES.get(device) or (flags if is_own else IntFlag)
        self._prefix = f"VIRTIO_{short_name(device)}"
        self._bits = {member.bit_length() - 1: name for name, member in _single_bits(self._own)}

    def explain(self, text: str) -> str:
        """Return `text`, which has words such as `VERSION_1|bit 15`, with the type's own bits named."""
        return _BIT.sub(lambda bit: self._bits.get(int(bit[1]), bit[0]), text)

    def explain_message(self, text: str, message: object) -> str:
        """Return the text of a message, with the bits named if the message has virtio features."""
        return self.explain(text) if isinstance(getattr(message, "features", None), Feature) else text

    def find(self, text: str) -> Feature | ProtocolFeature:
        """Return the feature of this name, in upper or lower case, with or without its prefix.

        Raises KeyError if there is none, and ValueError, with a text for the user, if there are two.
        """
        prefix, _, name = text.upper().replace("-", "_").rpartition("_F_")
        found = {
            f"{before}_F_{name}": member
            for before, bits in self._tables(prefix)
            for known, member in _single_bits(bits)
            if known == name
        }
        if len(found) > 1:
            raise ValueError(f"'{text}' is a feature of two kinds; give one of {', '.join(found)}")
        if not found:
            raise KeyError(text)
        (member,) = found.values()
        return member if isinstance(member, ProtocolFeature) else Feature(int(member))

    def choices(self, own: int, shared: Feature, protocol: ProtocolFeature) -> list[str]:
        """Return names for `find()` of the features that are set, with a prefix where a name is ambiguous."""
        found = [(self._prefix, name) for bit, name in self._bits.items() if own >> bit & 1]
        found += [("VIRTIO", name) for name, member in _single_bits(Feature) if shared & member]
        found += [(_PROTOCOL, name) for name, member in _single_bits(ProtocolFeature) if protocol & member]
        return [f"{prefix}_F_{name}" if self._is_ambiguous(name) else name for prefix, name in found]

    def _is_ambiguous(self, name: str) -> bool:
        return sum(name in bits.__members__ for _, bits in self._tables("")) > 1

    def _tables(self, prefix: str) -> Iterable[tuple[str, type[IntFlag]]]:
        """Yield the enumerations that a prefix may stand for, each with its prefix."""
        if prefix in {"", self._prefix}:
            yield self._prefix, self._own
        if prefix in {"", *_SHARED}:
            yield prefix or "VIRTIO", Feature
        if prefix in {"", _PROTOCOL}:
            yield _PROTOCOL, ProtocolFeature


@functools.cache
def names_of(device: DeviceId, flags: type = int) -> FeatureNames:
    """Return the names of a device type; each type's object is made once."""
    return FeatureNames(device, flags)


def _single_bits(bits: type[IntFlag]) -> Iterable[tuple[str, IntFlag]]:
    return [(name, member) for name, member in bits.__members__.items() if member.bit_count() == 1]

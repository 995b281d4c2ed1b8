"""The guests that one program serves, which may connect to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vhost_user.devices.vsock.connection_table import ConnectionTable


class Sibling(Protocol):
    """A guest's device, as the devices of other guests see it."""

    guest_cid: int
    groups: frozenset[str]
    is_up: bool
    """True while the guest has a driver that answers."""
    table: ConnectionTable


class Siblings:
    """The guests that one program serves, by CID. Those that have a group in common may connect."""

    def __init__(self) -> None:
        self._devices: dict[int, Sibling] = {}

    def add(self, device: Sibling) -> None:
        """Add a guest. Raises ValueError where another one has its CID."""
        if device.guest_cid in self._devices:
            raise ValueError(f"two guests have the CID {device.guest_cid}")
        self._devices[device.guest_cid] = device

    def find(self, cid: int, device: Sibling) -> Sibling | None:
        """Return the guest `cid`, if the guest of `device` may connect to it and it is up."""
        found = self._devices.get(cid)
        if found is None or found is device or not found.is_up or found.groups.isdisjoint(device.groups):
            return None
        return found

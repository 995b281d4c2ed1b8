"""The guests that one program serves, which may connect to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhost_user.devices.vsock.device import Vsock


class Siblings:
    """The guests that one program serves, by CID. Those that are in a group together may connect."""

    def __init__(self) -> None:
        self._devices: dict[int, Vsock] = {}

    def add(self, device: Vsock) -> None:
        """Add a guest. Raises ValueError where another one has its CID."""
        if device.guest_cid in self._devices:
            raise ValueError(f"two guests have the CID {device.guest_cid}")
        self._devices[device.guest_cid] = device

    def find(self, cid: int, device: Vsock) -> Vsock | None:
        """Return the guest `cid`, if `device`'s guest may connect to it and it is up."""
        found = self._devices.get(cid)
        if found is None or found is device or not found.is_up or found.groups.isdisjoint(device.groups):
            return None
        return found

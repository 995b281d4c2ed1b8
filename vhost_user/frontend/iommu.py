"""Iommu: the translations of a guest's IOMMU, for a front-end with ACCESS_PLATFORM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.vhost_user import IotlbMsg, IotlbType, Permission

if TYPE_CHECKING:
    from vhost_user.frontend.memory import Memory

READ_WRITE = Permission.READ | Permission.WRITE


@dataclass(frozen=True)
class Translation:
    """`size` bytes of I/O virtual addresses from `iova` on, and the guest address that the first one is."""

    iova: int
    guest_address: int
    size: int
    permission: Permission = READ_WRITE


class Iommu:
    """Translations by I/O virtual address. While there are none, each address is translated to itself."""

    def __init__(self, memory: Memory) -> None:
        self.translations: list[Translation] = []
        self._memory = memory

    def answer(self, iova: int, permission: Permission) -> IotlbMsg | None:
        """Return the message about an address that the back-end asks for; None if it is not permitted."""
        for entry in self.translations or self._identity():
            if entry.iova <= iova < entry.iova + entry.size and not permission.without(entry.permission):
                user = entry.guest_address + self._memory.user_offset
                return IotlbMsg(entry.iova, entry.size, user, entry.permission, IotlbType.UPDATE)
        return None

    def _identity(self) -> list[Translation]:
        return [
            Translation(each.guest_address, each.guest_address, each.size) for each in self._memory.regions
        ]

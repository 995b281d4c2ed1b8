"""Filter: which frames a guest wants, as its driver said (virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from protocol.virtio.net import MAC_SIZE, RxCommand

FILTERED_BYTES = 2 * MAC_SIZE + 4
"""How much of a frame's front decides: both addresses, and a VLAN tag if there is one."""

BROADCAST = b"\xff" * MAC_SIZE
_VLAN_TAG = b"\x81\x00"
_VLAN_MASK = 0xFFF


class Filter:
    """Lets everything through until a driver says otherwise.

    `modes` are those of RxCommand that are on. A frame with a VLAN tag has to be of one of `vlans`,
    unless that is None.
    """

    def __init__(self, mac: bytes) -> None:
        """`mac` is the guest's own address, which `mac` may be set to later, too."""
        self.mac = mac
        self.modes: set[RxCommand] = {RxCommand.PROMISC}
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.vlans: set[int] | None = None

    @property
    def is_open(self) -> bool:
        """True while everything goes through."""
        return RxCommand.PROMISC in self.modes

    def wants(self, front: bytes) -> bool:
        """Tell whether a frame goes through, whose first FILTERED_BYTES (or fewer) are `front`."""
        if self.is_open:
            return True
        if self.vlans is not None and front[2 * MAC_SIZE : 2 * MAC_SIZE + 2] == _VLAN_TAG:
            vlan = int.from_bytes(front[2 * MAC_SIZE + 2 :], "big") & _VLAN_MASK
            if vlan not in self.vlans:
                return False
        target = front[:MAC_SIZE]
        if target == BROADCAST:
            return RxCommand.NOBCAST not in self.modes
        if target[0] & 1:
            return self._wants(target, RxCommand.NOMULTI, RxCommand.ALLMULTI, self.multicast)
        return self._wants(target, RxCommand.NOUNI, RxCommand.ALLUNI, self.unicast | {self.mac})

    def _wants(self, target: bytes, none: RxCommand, every: RxCommand, table: frozenset[bytes]) -> bool:
        return none not in self.modes and (every in self.modes or target in table)

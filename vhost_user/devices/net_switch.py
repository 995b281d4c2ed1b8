"""A switch that learns which guest has which address, and a link of two guests without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhost_user.devices.net_mac_table import AGE_SECONDS, MOST_OF_A_PORT, MacTable
from vhost_user.devices.net_network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.net_network import NetworkPort


class Switch(Network):
    """A switch. What is for a group, or for an address that it does not know, goes to all other ports.

    Frames pass as they are, VLAN tags included, and those of protocols between switches too.
    """

    def __init__(
        self,
        count: int,
        *,
        queue_pairs: int = 1,
        age: float = AGE_SECONDS,
        most: int = MOST_OF_A_PORT,
    ) -> None:
        """Have `count` ports; remember `most` addresses of each, for `age` seconds after the last frame."""
        super().__init__(count, queue_pairs=queue_pairs)
        self._table = MacTable(age=age, most=most)

    def targets(self, source: NetworkPort, addresses: bytes) -> Sequence[NetworkPort]:
        """Return the port that has the address, or all others."""
        now = trio.current_time()
        self._table.learn(addresses[6:], source.number, now)
        number = self._table.find(addresses[:6], now)
        if number == source.number:
            return []
        known = [] if number is None else [self.ports[number]]
        if known and known[0].is_receiving:
            return known
        # A guest that has left may be back at another port, and not have said anything there.
        return [port for port in self.ports if port is not source and port.is_receiving] or known

    def link_set(self, port: NetworkPort) -> None:
        """Forget who was behind a port whose cable is pulled out: it may come back at another one."""
        self._table.forget(port.number)

    def mac_table(self) -> list[tuple[bytes, int, float]]:
        """Return the addresses that it knows: address, port, seconds since it was seen."""
        return self._table.entries(trio.current_time())


class Link(Network):
    """A cable between two guests: what one sends, the other one gets. Both see when one end is pulled out."""

    def __init__(self, *, queue_pairs: int = 1) -> None:
        super().__init__(2, queue_pairs=queue_pairs)

    def targets(self, source: NetworkPort, addresses: bytes) -> Sequence[NetworkPort]:
        """Return the other end."""
        other = self.ports[1 - source.number]
        return [other] if other.is_receiving else []

    def link_set(self, port: NetworkPort) -> None:
        """Let the other end see it."""
        other = self.ports[1 - port.number]
        other.link_up = port.is_plugged
        if other.link_changed is not None:
            other.link_changed()

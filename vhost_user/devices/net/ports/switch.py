"""A switch that learns the addresses of its guests, and a link of two guests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from vhost_user.devices.net.ports.frames import is_group
from vhost_user.devices.net.ports.network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.net.ports.network import NetworkPort

AGE_SECONDS = 300.0
"""How long an address is remembered that is not seen again: what IEEE 802.1Q, section 8.8.3, recommends."""

MOST_OF_A_PORT = 1024
"""How many addresses one port can have, the oldest of which is forgotten for a newer one.

A guest that invents addresses thus makes the switch forget its own, and none of another guest's.
"""


@dataclass
class _Entry:
    port: int
    seen: float


class MacTable:
    """Learns behind which port an address is. VLAN tags make no difference: an address is at one port.

    Time is in seconds, by whatever clock the caller has.
    """

    def __init__(self, *, age: float = AGE_SECONDS, most: int = MOST_OF_A_PORT) -> None:
        """Forget an address after `age` seconds without a frame from it; remember `most` for each port."""
        self._age = age
        self._most = most
        self._entries: dict[bytes, _Entry] = {}
        self._of_port: dict[int, dict[bytes, None]] = {}
        """The addresses of each port, the one that was seen last at the end."""

    def __len__(self) -> int:
        return len(self._entries)

    def learn(self, address: bytes, port: int, now: float) -> None:
        """Note that a frame from `address` came in at `port`; one from a group's address is ignored."""
        if is_group(address):
            return
        entry = self._entries.get(address)
        if entry is None:
            self._entries[address] = _Entry(port, now)
        else:
            del self._of_port[entry.port][address]
            entry.port, entry.seen = port, now
        addresses = self._of_port.setdefault(port, {})
        addresses[address] = None
        if len(addresses) > self._most:
            oldest = next(iter(addresses))
            del addresses[oldest], self._entries[oldest]

    def find(self, address: bytes, now: float) -> int | None:
        """Return the port that `address` is behind; None where it is not known, or is a group's."""
        entry = self._entries.get(address)
        if entry is None or now - entry.seen > self._age:
            return None
        return entry.port

    def forget(self, port: int) -> None:
        """Forget all addresses of a port: its link is down."""
        for address in self._of_port.pop(port, ()):
            del self._entries[address]

    def entries(self, now: float) -> list[tuple[bytes, int, float]]:
        """Return the addresses that are known: address, port, seconds since it was seen; by port."""
        for port, addresses in list(self._of_port.items()):
            self._drop_old(port, addresses, now)
        return [
            (address, port, now - self._entries[address].seen)
            for port, addresses in sorted(self._of_port.items())
            for address in addresses
        ]

    def _drop_old(self, port: int, addresses: dict[bytes, None], now: float) -> None:
        for address in list(addresses):
            if now - self._entries[address].seen <= self._age:
                return  # those behind it were seen later
            del addresses[address], self._entries[address]


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
        """Make `count` ports; remember `most` addresses of each, for `age` seconds after the last frame."""
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

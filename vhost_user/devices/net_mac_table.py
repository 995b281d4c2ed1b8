"""Which guest has which MAC address, as a switch learns it from the frames that it sees."""

from __future__ import annotations

from dataclasses import dataclass

AGE_SECONDS = 300.0
"""How long an address is remembered that is not seen again: what IEEE 802.1Q, section 8.8.3, recommends."""

MOST_OF_A_PORT = 1024
"""How many addresses one port can have, the oldest of which is forgotten for a newer one.

A guest that invents addresses thus makes the switch forget its own, and none of another guest's.
"""

_GROUP = 1
"""The bit of an address's first byte that is set where it is for several stations, or for all."""


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
        """Note that a frame from `address` came in at `port`; one from a group's address is no news."""
        if address[0] & _GROUP:
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

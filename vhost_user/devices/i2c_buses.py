"""The buses behind an I2C adapter: one of simulated chips, those of the host, and all of them as one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

from vhost_user.devices.i2c_chips import run_transfer
from vhost_user.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vhost_user.devices.i2c_chips import I2cChip, Message


class Bus(Protocol):
    """Where chips are: simulated ones (ChipBus) or those of the host (HostBus)."""

    @property
    def addresses(self) -> frozenset[int]:
        """The chips that the guest sees."""

    async def transfer(self, messages: Sequence[Message]) -> int:
        """Do messages as one transfer, with repeated starts; return how many were done before one failed."""

    def close(self) -> None:
        """Let go of it; may come again."""


class ChipBus(Simulation):
    """Simulated chips by their addresses; each is a part that is named by its address, as in "0x48"."""

    def __init__(self, chips: Mapping[int, I2cChip]) -> None:
        """Own `chips` from now on. Raises ValueError for an address that cannot be, or is used twice."""
        super().__init__()
        self._owned = tuple(chips.values())
        self._chips: dict[int, I2cChip] = {}
        for first, chip in chips.items():
            self.add_part(f"{first:#04x}", chip)
            for address in chip.addresses_from(first):
                if address in self._chips:
                    raise ValueError(f"address {address:#04x} is used twice")
                self._chips[address] = chip

    @property
    def addresses(self) -> frozenset[int]:
        """Where there is a chip."""
        return frozenset(self._chips)

    async def transfer(self, messages: Sequence[Message]) -> int:
        """Do messages as one transfer, at once; return how many were done."""
        return run_transfer(self._chips, messages)

    def close(self) -> None:
        """Close the chips."""
        for chip in self._owned:
            chip.close()


class Buses:
    """Several buses, of which a guest sees one."""

    def __init__(self, buses: Iterable[Bus]) -> None:
        """Own `buses` from now on. Raises ValueError where two have a chip at the same address."""
        self._buses = tuple(buses)
        self._bus_of: dict[int, Bus] = {}
        for bus in self._buses:
            for address in bus.addresses:
                if address in self._bus_of:
                    raise ValueError(f"address {address:#04x} is used twice")
                self._bus_of[address] = bus

    async def transfer(self, messages: Sequence[Message]) -> int:
        """Do messages as one transfer; return how many were done before one failed.

        It is one transfer for each bus. Few have messages for several.
        """
        done = 0
        for bus, part in itertools.groupby(messages, lambda message: self._bus_of.get(message.address)):
            run = list(part)
            count = 0 if bus is None else await bus.transfer(run)
            done += count
            if count < len(run):
                break
        return done

    def close(self) -> None:
        """Close them; may come again."""
        for bus in self._buses:
            bus.close()

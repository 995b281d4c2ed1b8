"""The buses behind an I2C adapter: simulated chips, the host, and all of them as one.

How it works: a bus belongs to one device, whose queue asks for one transfer after the other, so that
nothing interleaves on it for the guest. A host's bus does a transfer in a thread, and other programs of the
host use it between two transfers, as the kernel orders them. Simulated chips answer in the loop's thread: a
transfer is atomic against calls of scripts and against what a chip does in `run()`. What a chip, or a bus
of one's own, raises is a NACK for the guest; `in_time()` bounds what awaits.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.words import plural
from vhost_user.devices.i2c.chips.chip import read_data, run_transfer
from vhost_user.own_code.containment import Containment, in_time
from vhost_user.simulation.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from vhost_user.devices.i2c.chips.chip import I2cChip, I2cMessage

_log = logging.getLogger("vhost_user.i2c")

_NACK = "the guest gets an error"


class Bus(Protocol):
    """Where chips are: simulated ones (ChipBus), those of the host (HostBus), or what else there may be."""

    @property
    def addresses(self) -> frozenset[int]:
        """The chips that the guest sees."""

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        """Do messages as one transfer, with repeated starts; return how many were done before one failed."""

    def close(self) -> None:
        """Release it; may come again."""


class ChipBus(Simulation):
    """Simulated chips by their addresses; each is a part that is named by its address, as in "0x48".

    An exception of a chip's is a NACK, and stays within it.
    """

    def __init__(self, chips: Mapping[int, I2cChip]) -> None:
        """Own `chips` from now on. Raises ValueError for an address that cannot be, or is used twice."""
        super().__init__()
        self._owned = tuple(chips.values())
        self._own = Containment(_log)
        self._chips: dict[int, I2cChip] = {}
        self._names: dict[int, str] = {}
        """By the chips' identity: those of a class of one's own may be equal, or have no hash."""
        for first, chip in chips.items():
            self.add_part(f"{first:#04x}", chip)
            self._names[id(chip)] = f"the chip {type(chip).__name__} at {first:#04x}"
            for address in chip.addresses_from(first):
                if address in self._chips:
                    raise ValueError(f"address {address:#04x} is used twice")
                self._chips[address] = chip

    @property
    def addresses(self) -> frozenset[int]:
        """Where there is a chip."""
        return frozenset(self._chips)

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        """Do messages as one transfer, at once; return how many were done."""
        return run_transfer(self._chips, messages, self._guard)

    async def run(self) -> None:
        """Do what goes on beside the bus in each chip; one that fails has its place on the bus still."""
        async with trio.open_nursery() as nursery:
            for chip in self._owned:
                nursery.start_soon(self._run, chip)

    def close(self) -> None:
        """Close the chips."""
        for chip in self._owned:
            with self._guard(chip, "it was to be closed"):
                chip.close()

    def _guard(self, chip: I2cChip, effect: str = _NACK) -> AbstractContextManager[object]:
        return self._own.code(self._names[id(chip)], effect)

    async def _run(self, chip: I2cChip) -> None:
        with self._guard(chip, "its run() is over, while the guest has it still"):
            await chip.run()


class Buses:
    """Several buses, of which a guest sees one."""

    def __init__(self, buses: Iterable[Bus]) -> None:
        """Own `buses` from now on. Raises ValueError where two have a chip at the same address."""
        self._own = Containment(_log)
        self._buses = tuple(buses)
        self._bus_of: dict[int, Bus] = {}
        for bus in self._buses:
            for address in bus.addresses:
                if address in self._bus_of:
                    raise ValueError(f"address {address:#04x} is used twice")
                self._bus_of[address] = bus

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        """Do messages as one transfer; return how many were done before one failed.

        It is one transfer for each bus. Few have messages for several.
        """
        done = 0
        for bus, part in itertools.groupby(messages, lambda message: self._bus_of.get(message.address)):
            run = list(part)
            count = 0 if bus is None else await self._transfer(bus, run)
            done += count
            if count < len(run):
                break
        return done

    async def _transfer(self, bus: Bus, messages: Sequence[I2cMessage]) -> int:
        """Do messages on one bus; none where it fails, takes too long, or says that it did what cannot be."""
        with self._own.code(type(bus).__name__, _NACK), in_time():
            done = await bus.transfer(messages)
            if done not in range(len(messages) + 1):
                raise ValueError(f"transfer() of {plural(len(messages), 'message')} has returned {done!r}")
            for message in messages[:done]:
                if message.read:
                    message.data = read_data(message.data, message.size)
            return done
        return 0

    def close(self) -> None:
        """Close them; may come again."""
        for bus in self._buses:
            with self._own.code(type(bus).__name__, "it was to be closed"):
                bus.close()

"""i2c: an adapter with simulated chips and chips of the host (virtio 1.3, section 5.16)."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from protocol.program.warnings import OnceLogger
from protocol.virtio.i2c import I2cFeature, RequestStatus
from protocol.virtio.ids import DeviceId
from vhost_user.device import VirtioDevice
from vhost_user.devices.i2c.buses import Bus, Buses, ChipBus
from vhost_user.devices.i2c.requests import Transfers, completion_order, write_response

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    from vhost_user.devices.i2c.chips.chip import I2cChip, I2cMessage
    from vhost_user.devices.i2c.requests import Request
    from vhost_user.queue import Virtqueue

_log = logging.getLogger("vhost_user.i2c")


class I2c(VirtioDevice):
    """An I2C bus for a guest, with simulated chips and with chips of the host.

    ::

        device = I2c({0x48: Lm75(21.5), 0x50: At24("24c02", "eeprom.bin")})
        device.chips[0x48].set_temperature(30)

    What a chip or a bus of one's own raises is a NACK: all others, and the guest's connection, go on.
    """

    device_id = DeviceId.I2C_ADAPTER
    name = "i2c"
    features = I2cFeature.ZERO_LENGTH_REQUEST
    drain_seconds = 10.0
    """As long as an adapter of the host may need until it gives up a transfer."""

    def __init__(self, chips: Mapping[int, I2cChip] | None = None, host: Iterable[Bus] = ()) -> None:
        """Own `chips`, which are simulated, by their addresses, and the `host` buses from now on.

        Raises ValueError for an address that no chip can have, and for one that is used twice.
        """
        self.chips = dict(chips or {})
        """The simulated chips."""
        self.simulation: ChipBus = ChipBus(self.chips)
        self._buses = Buses([self.simulation, *host])
        self._runs_chips = True
        self._once = OnceLogger(_log)

    def for_another_guest(self) -> Self:
        """Return a device for another guest, with the same chips. A transfer has them to itself.

        Close either of them once neither is served.
        """
        other = copy.copy(self)
        other._runs_chips = False
        return other

    def close(self) -> None:
        """Close the chips and the host's buses."""
        self._buses.close()

    async def run_host(self) -> None:
        """Run the chips, which one of the devices that have them does."""
        if self._runs_chips:
            await self.simulation.run()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Do the requests, one group after the other."""
        failing = False
        async for group in Transfers(queue):
            requests = [request for _, request in group]
            done = 0 if failing else await self._perform(requests)
            written = [
                write_response(request, RequestStatus.OK if number < done else RequestStatus.ERR)
                for number, request in enumerate(requests)
            ]
            for number in completion_order(len(group), done):
                group[number][0].complete(written[number])
            queue.flush()
            failing = done < len(group) and requests[-1].fail_next

    async def _perform(self, requests: Sequence[Request]) -> int:
        """Do a group's requests up to the first that cannot be done; return how many were."""
        messages: list[I2cMessage] = []
        for request in requests:
            if request.message is None:
                self._once.warning(f"refused a request: {request.reason}")
                break
            messages.append(request.message)
        return await self._buses.transfer(messages)

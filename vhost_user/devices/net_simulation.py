"""What can be done to a network device while the guest runs, from Python and over --control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.devices.net import Net


class NetSimulation(Simulation):
    """The calls of one device. Its events: `link` (up), `mac` (address) and `announced`."""

    def __init__(self, device: Net) -> None:
        super().__init__()
        self._device = device
        if device.port.simulation is not None:
            self.add_part("port", device.port.simulation)

    @call
    def set_link(self, up: bool) -> None:
        """Plug the guest's cable in, or pull it out: the guest sees that, and no frames go through."""
        self._device.set_link(up)

    @call
    def link(self) -> bool:
        """Tell whether frames go through."""
        return self._device.link_up

    @call
    def mac(self) -> str:
        """Return the guest's MAC address, which its driver may have changed."""
        return self._device.guest_mac.hex(":")

    @call
    def announce(self) -> None:
        """Have the guest tell the network where it is, as after a migration."""
        self._device.announce()

    @call
    def statistics(self) -> dict[str, int]:
        """Return what went through so far: frames, bytes, and frames that were lost."""
        to_guest, from_guest, port = self._device.to_guest, self._device.from_guest, self._device.port
        return {
            "to_guest_frames": to_guest.frames,
            "to_guest_bytes": to_guest.bytes,
            "to_guest_dropped": to_guest.dropped + port.dropped_to_guest,
            "to_guest_filtered": to_guest.filtered,
            "from_guest_frames": from_guest.frames,
            "from_guest_bytes": from_guest.bytes,
            "from_guest_dropped": from_guest.dropped + port.dropped_from_guest,
        }


class NetSimulations(Simulation):
    """Several devices of one program, as parts that are numbered as their sockets are: "0", "1"."""

    def __init__(self, devices: Iterable[NetSimulation]) -> None:
        super().__init__()
        for number, device in enumerate(devices):
            self.add_part(str(number), device)

"""The calls by which network devices and their lines are changed while guests run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from protocol.program.units import parse_rate, parse_share, parse_time
from vhost_user.devices.net.ports.impairments import NONE
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.devices.net.ports.impaired import ImpairedPort
    from vhost_user.devices.net.ports.switch import Switch


class Card(Protocol):
    """A network device, as its simulation sees it."""

    @property
    def link_up(self) -> bool:
        """True while frames go through."""

    @property
    def guest_mac(self) -> bytes:
        """The guest's MAC address now."""

    def set_link(self, up: bool) -> None:
        """Pull the guest's cable out, or plug it in."""

    def announce(self) -> None:
        """Ask the guest to tell the network where it is. Raises ValueError."""

    def statistics(self) -> dict[str, int]:
        """Return what went through so far: frames, bytes, and frames that were lost."""


class NetSimulation(Simulation):
    """The calls of one device. Its events: `link` (up), `mac` (address) and `announced`."""

    def __init__(self, device: Card, port: Simulation | None) -> None:
        """`port` is the simulation of what the device is plugged into, if there is one."""
        super().__init__()
        self._device = device
        if port is not None:
            self.add_part("port", port)

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
        """Ask the guest to tell the network where it is, as after a migration."""
        self._device.announce()

    @call
    def statistics(self) -> dict[str, int]:
        """Return what went through so far: frames, bytes, and frames that were lost."""
        return self._device.statistics()


class NetSimulations(Simulation):
    """Several devices of one program, as parts that are numbered as their sockets are: "0", "1"."""

    def __init__(self, devices: Iterable[NetSimulation]) -> None:
        super().__init__()
        for number, device in enumerate(devices):
            self.add_part(str(number), device)


UNITS = {
    "loss": parse_share,
    "duplicate": parse_share,
    "corrupt": parse_share,
    "reorder": parse_share,
    "delay": parse_time,
    "jitter": parse_time,
    "rate": parse_rate,
}
"""How a value of each impairment is read."""


class LineSimulation(Simulation):
    """The calls for the lines of one port."""

    def __init__(self, port: ImpairedPort) -> None:
        super().__init__()
        self._port = port

    @call
    def impair(
        self,
        direction: Literal["both", "from_guest", "to_guest"] = "both",
        *,
        loss: str | float | None = None,
        duplicate: str | float | None = None,
        corrupt: str | float | None = None,
        delay: str | None = None,
        jitter: str | None = None,
        reorder: str | float | None = None,
        rate: str | None = None,
    ) -> None:
        """Make the lines worse or better: "5%" or 0.05, "20ms", "10Mbit"; what is not given stays as it is.

        Raises CallError for what cannot be; nothing is changed then.
        """
        given: dict[str, Any] = {
            "loss": loss,
            "duplicate": duplicate,
            "corrupt": corrupt,
            "delay": delay,
            "jitter": jitter,
            "reorder": reorder,
            "rate": rate,
        }
        try:
            values = {name: UNITS[name](str(value)) for name, value in given.items() if value is not None}
            lines = [line for name, line in self._port.lines.items() if direction in {"both", name}]
            settings = [replace(line.line.settings, **values) for line in lines]
        except ValueError as error:
            raise CallError(str(error)) from None
        for line, setting in zip(lines, settings, strict=True):
            line.change(setting)

    @call
    def repair(self) -> None:
        """Make both lines perfect."""
        for line in self._port.lines.values():
            line.change(NONE)

    @call
    def impairments(self) -> dict[str, Any]:
        """Return what the lines do: shares, seconds, bits per second (0: no limit)."""
        return {name: asdict(line.line.settings) for name, line in self._port.lines.items()}

    @call
    def statistics(self) -> dict[str, Any]:
        """Return what became of the frames of each line, and how many are held in it."""
        return {
            **{
                name: {**asdict(line.line.counts), "held": line.line.held}
                for name, line in self._port.lines.items()
            },
            "dropped_from_guest": self._port.dropped_from_guest,
            "dropped_to_guest": self._port.dropped_to_guest,
        }


class SwitchPortSimulation(LineSimulation):
    """The calls for a port of a switch."""

    def __init__(self, port: ImpairedPort, switch: Switch) -> None:
        super().__init__(port)
        self._switch = switch

    @call
    def mac_table(self) -> list[dict[str, Any]]:
        """Return the addresses that the switch knows: address, port, seconds since it was seen."""
        return [
            {"address": address.hex(":"), "port": port, "age": round(age, 3)}
            for address, port, age in self._switch.mac_table()
        ]

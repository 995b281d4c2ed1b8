"""What can be done to network devices and their lines while guests run, from Python and over --control."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from vhost_user.devices.net_impairments import NONE
from vhost_user.json_call import CallError
from vhost_user.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.devices.net import Net
    from vhost_user.devices.net_impaired import ImpairedPort
    from vhost_user.devices.net_switch import Switch


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


_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def share(value: float | str) -> float:
    """Return a share: 0.05 or "5%". Raises ValueError, in words for the user."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + "(%?)", value)
        if match is None:
            raise ValueError(f"'{value}' is no share; write it as 5%, or 0.05")
        value = float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise ValueError(f"{value:g} is no share: one is from 0 to 1, or from 0% to 100%")
    return value


def seconds(value: float | str) -> float:
    """Return a time in seconds: 0.02 or "20ms". Raises ValueError, in words for the user."""
    return _scaled(value, _SECONDS, "time", "20ms, 500us or 1.5s")


def bits_per_second(value: float | str) -> float:
    """Return a rate in bits per second: 1e7 or "10Mbit"; 0 is no limit. Raises ValueError."""
    return _scaled(value, _BITS, "rate", "10Mbit, 64kbit or 1Gbit")


def _scaled(value: float | str, units: dict[str, float], kind: str, examples: str) -> float:
    if isinstance(value, str):
        match = re.fullmatch(f"{_NUMBER}({'|'.join(units)})|0", value.lower())
        if match is None:
            raise ValueError(f"'{value}' is no {kind}; write it as {examples}")
        return float(match[1] or 0) * units.get(match[2], 0)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value:g} is no {kind}: it has to be 0 or more")
    return value


UNITS = {
    "loss": share,
    "duplicate": share,
    "corrupt": share,
    "reorder": share,
    "delay": seconds,
    "jitter": seconds,
    "rate": bits_per_second,
}
"""How a value of each impairment is read, be it a number or a text."""


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
        loss: float | str | None = None,
        duplicate: float | str | None = None,
        corrupt: float | str | None = None,
        delay: float | str | None = None,
        jitter: float | str | None = None,
        reorder: float | str | None = None,
        rate: float | str | None = None,
    ) -> None:
        """Make the lines worse or better: "5%" or 0.05, "20ms" or 0.02, "10Mbit" or 1e7; null: as it is.

        Raises CallError for what cannot be; nothing is changed then.
        """
        given = {
            "loss": loss,
            "duplicate": duplicate,
            "corrupt": corrupt,
            "delay": delay,
            "jitter": jitter,
            "reorder": reorder,
            "rate": rate,
        }
        try:
            values = {name: UNITS[name](value) for name, value in given.items() if value is not None}
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

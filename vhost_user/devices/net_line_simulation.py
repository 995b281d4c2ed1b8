"""What can be changed of a network while guests use it: how bad the lines are. And what became of frames."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from vhost_user.devices.net_impairments import NONE
from vhost_user.devices.net_units import bits_per_second, seconds, share
from vhost_user.json_call import CallError
from vhost_user.simulation import Simulation, call

if TYPE_CHECKING:
    from vhost_user.devices.net_impaired import ImpairedPort
    from vhost_user.devices.net_switch import Switch

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

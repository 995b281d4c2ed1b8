"""The options of vhost-user-net for switch and link, impaired lines and captures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.program.command_line import UserError, parsed_by, whole_number
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import NONE, Impairments
from vhost_user.devices.net.ports.network import NetworkPort
from vhost_user.devices.net.ports.pcap import SNAPLEN, Capture, CapturedPort
from vhost_user.devices.net.ports.switch import Link, Switch
from vhost_user.devices.net.simulation import UNITS, LineSimulation, SwitchPortSimulation

if TYPE_CHECKING:
    import argparse

    from vhost_user.devices.net.ports.port import NetPort

_SHARE, _TIME, _RATE = "SHARE", "TIME", "RATE"
_IMPAIRMENTS = {
    "loss": (_SHARE, "drop this share of the frames, such as 5%%"),
    "duplicate": (_SHARE, "deliver this share of the frames twice"),
    "corrupt": (_SHARE, "change one bit in this share of the frames"),
    "delay": (_TIME, "delay frames by this time, such as 20ms"),
    "jitter": (_TIME, "vary the delay by at most this time, up and down"),
    "reorder": (_SHARE, "let this share of the frames overtake others, without a delay"),
    "rate": (_RATE, "limit the rate of the line, such as 10Mbit"),
}


def add_switch_options(parser: argparse.ArgumentParser) -> None:
    """Add `--switch`."""
    parser.add_argument(
        "--switch", action="store_true", help="connect the guests of all sockets (--socket-count) by a switch"
    )


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add `--link`."""
    parser.add_argument(
        "--link", action="store_true", help="connect the guests of two sockets (--socket-count 2) by a cable"
    )


def is_switch(options: argparse.Namespace) -> bool:
    """Return whether the command line has `--switch`."""
    return bool(options.switch)


def is_link(options: argparse.Namespace) -> bool:
    """Return whether the command line has `--link`."""
    return bool(options.link)


def make_switch_ports(options: argparse.Namespace, count: int) -> list[NetPort]:
    """Return the ports of a switch. Raises UserError."""
    if count < 2:
        raise UserError("--switch connects two guests or more; give --socket-count N, for a socket each")
    return [*Switch(count, queue_pairs=options.queues).ports]


def make_link_ports(options: argparse.Namespace, count: int) -> list[NetPort]:
    """Return both ends of a cable. Raises UserError."""
    if count != 2:
        raise UserError("--link connects two guests; give --socket-count 2, for a socket each")
    return [*Link(queue_pairs=options.queues).ports]


def add_line_options(parser: argparse.ArgumentParser) -> None:
    """Add `--loss` and the other impairments."""
    for name, (metavar, text) in _IMPAIRMENTS.items():
        parser.add_argument(f"--{name}", type=parsed_by(UNITS[name]), metavar=metavar, help=text)
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 64),
        default=0,
        metavar="N",
        help="choose the frames at random, the same ones for the same N (default: %(default)s)",
    )


def with_lines(options: argparse.Namespace, ports: list[NetPort]) -> list[NetPort]:
    """Return the ports behind impaired lines, if a line is impaired or --control may impair it."""
    settings = _impairments(options)
    if settings == NONE and options.control is None:
        return ports
    return [_with_lines(port, settings, f"{options.seed} {number}") for number, port in enumerate(ports)]


def add_capture_options(parser: argparse.ArgumentParser) -> None:
    """Add `--pcap`."""
    parser.add_argument(
        "--pcap",
        metavar="FILE",
        help="write all frames to FILE, as pcapng; to a FIFO as long as it has a reader",
    )
    parser.add_argument(
        "--pcap-snaplen",
        type=whole_number(1, SNAPLEN),
        default=SNAPLEN,
        metavar="BYTES",
        help="write at most BYTES of each frame (default: %(default)s)",
    )


def with_capture(options: argparse.Namespace, ports: list[NetPort]) -> list[NetPort]:
    """Return the ports with a capture, if there is to be one. Raises UserError."""
    if options.pcap is None:
        return ports
    names = [f"port{number}" for number in range(len(ports))]
    try:
        capture = Capture(options.pcap, names, snaplen=options.pcap_snaplen)
    except OSError as error:
        raise UserError(
            f"cannot write to {options.pcap}: {error.strerror}; give another file with --pcap"
        ) from None
    return [CapturedPort(port, capture, number) for number, port in enumerate(ports)]


def _impairments(options: argparse.Namespace) -> Impairments:
    given: dict[str, Any] = {name: getattr(options, name) for name in _IMPAIRMENTS}
    try:
        return Impairments(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(str(error)) from None


def _with_lines(port: NetPort, settings: Impairments, seed: str) -> ImpairedPort:
    # In a network of ours each frame comes from a guest, and is to go over one such line only.
    to_guest = NONE if isinstance(port, NetworkPort) else settings
    impaired = ImpairedPort(port, from_guest=settings, to_guest=to_guest, seed=seed)
    if isinstance(port, NetworkPort) and isinstance(port.network, Switch):
        impaired.simulation = SwitchPortSimulation(impaired, port.network)
    else:
        impaired.simulation = LineSimulation(impaired)
    return impaired

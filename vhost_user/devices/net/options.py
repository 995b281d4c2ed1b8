"""The options of vhost-user-net, and the table of hosts to plug it into."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, whole_number
from protocol.virtio.net import MAC_SIZE, MAX_MTU, MIN_MTU
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.net import switch_options, tap_options
from vhost_user.devices.net.addresses import stable_mac
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.frames import is_group
from vhost_user.devices.net.simulation import NetSimulations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from xml.etree.ElementTree import Element

    from vhost_user.devices.net.ports.port import NetPort

MAX_QUEUES = 64
"""The largest number of queue pairs: a vhost-user message has 8 bits for a queue, and a tap takes 256."""


@dataclass(frozen=True)
class Host:
    """A kind of host to plug into. The one that the command line chooses makes a port for each socket."""

    name: str
    """The options that choose it, as in messages: "--tap or --tap-fd"."""
    add_options: Callable[[argparse.ArgumentParser], None]
    is_chosen: Callable[[argparse.Namespace], bool]
    make_ports: Callable[[argparse.Namespace, int], list[NetPort]]
    """Make the given number of ports. Raises UserError, and leaves nothing open then."""


@dataclass(frozen=True)
class Wrapper:
    """Something between device and port, a `NetPort` itself, such as a recorder of frames."""

    add_options: Callable[[argparse.ArgumentParser], None]
    wrap: Callable[[argparse.Namespace, list[NetPort]], list[NetPort]]
    """Return the ports, each with a wrapper or as it is. A wrapper closes its port."""


HOSTS: tuple[Host, ...] = (
    Host(
        tap_options.NAME,
        tap_options.add_options,
        tap_options.is_chosen,
        tap_options.make_ports,
    ),
    Host(
        "--switch",
        switch_options.add_switch_options,
        switch_options.is_switch,
        switch_options.make_switch_ports,
    ),
    Host(
        "--link",
        switch_options.add_link_options,
        switch_options.is_link,
        switch_options.make_link_ports,
    ),
)
"""The hosts; exactly one is chosen."""

WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper(switch_options.add_line_options, switch_options.with_lines),
    Wrapper(switch_options.add_capture_options, switch_options.with_capture),
)
"""The wrappers of ports, the innermost first."""


class NetProgram(DeviceProgram):
    """vhost-user-net."""

    device = Net
    many_sockets = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add `--tap` and the others."""
        add_options(parser)

    def make(self, options: argparse.Namespace) -> list[Net]:
        """Return a device for each socket, plugged into one host. Raises UserError."""
        if options.socket_count is None:
            return self._with_ports(options, [options.socket_path or options.connect or "net"])
        devices = self._with_ports(options, self.socket_paths(options))
        whole = NetSimulations(device.net for device in devices)
        for device in devices:
            device.simulation = whole
        return devices

    def _with_ports(self, options: argparse.Namespace, names: Sequence[str]) -> list[Net]:
        macs = [mac_of(options, *each) for each in enumerate(names)]
        ports = make_ports(options, len(names))
        return [self.device(port, mac=mac, mtu=options.mtu) for port, mac in zip(ports, macs, strict=True)]

    def qemu_model(self) -> str:
        """Return QEMU's own network card, which this device serves in the place of another -netdev."""
        return "virtio-net-pci"

    def qemu_attachment(self, options: argparse.Namespace, chardev: str, properties: str) -> str:
        """Return QEMU's -netdev over a chardev, and its -device. QEMU tells the driver of address and MTU."""
        netdev, device = f"vhost-user,id={chardev},chardev={chardev}", f"{self.qemu_model()},netdev={chardev}"
        if options.queues > 1:
            netdev += f",queues={options.queues}"
            device += f",mq=on,vectors={2 * options.queues + 2}"
        if options.mtu is not None:
            device += f",host_mtu={options.mtu}"
        mac = mac_of(options, options.number, options.socket_path)
        return f"-netdev {netdev} -device {device},mac={mac.hex(':')}{properties}"

    def libvirt_element(self, options: argparse.Namespace) -> Element:
        """Return libvirt's <interface>, with the properties that must match the command line."""
        from vhost_user.device_program import libvirt

        mac = mac_of(options, options.number, options.socket_path).hex(":")
        queues = options.queues if options.queues > 1 else None
        element = libvirt.interface(options, mac, {"queues": queues})
        if options.mtu is not None:
            element.append(element.makeelement("mtu", {"size": str(options.mtu)}))
        return element


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the device's options to a command line."""
    for host in HOSTS:
        host.add_options(parser)
    parser.add_argument(
        "--mac",
        type=_mac,
        metavar="ADDRESS",
        help="the guest's MAC address (default: one derived from the socket's path, always the same)",
    )
    parser.add_argument(
        "--queues",
        type=whole_number(1, MAX_QUEUES),
        default=1,
        metavar="N",
        help="number of queue pairs that a guest may use (default: %(default)s)",
    )
    parser.add_argument(
        "--mtu",
        type=whole_number(MIN_MTU, MAX_MTU),
        metavar="BYTES",
        help="the MTU that is advised to the guest (default: that of the tap)",
    )
    for wrapper in WRAPPERS:
        wrapper.add_options(parser)


def make_ports(options: argparse.Namespace, count: int) -> list[NetPort]:
    """Return a port of the chosen host for each of `count` sockets. Raises UserError."""
    chosen = [host for host in HOSTS if host.is_chosen(options)]
    if len(chosen) != 1:
        names = ", ".join(host.name for host in HOSTS)
        raise UserError(f"give {'one of ' if len(HOSTS) > 1 else ''}{names}, to plug the device into")
    ports = chosen[0].make_ports(options, count)
    try:
        for wrapper in WRAPPERS:
            ports = wrapper.wrap(options, ports)
    except UserError:
        for port in ports:
            port.close()
        raise
    return ports


def mac_of(options: argparse.Namespace, number: int, name: str) -> bytes:
    """Return the address of a guest: --mac and those after it, or one derived from its socket's name.

    Raises UserError where the address after --mac is one of a group.
    """
    if options.mac is None:
        return stable_mac(str(Path(name).absolute()))
    mac = (int.from_bytes(options.mac, "big") + number).to_bytes(MAC_SIZE, "big")
    if is_group(mac):
        raise UserError(f"--mac {options.mac.hex(':')} has too few addresses after it: give a lower one")
    return mac


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != MAC_SIZE or len(text) != 3 * MAC_SIZE - 1 or is_group(mac) or not any(mac):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a MAC address of one machine, as 52:54:00:12:34:56"
        )
    return mac

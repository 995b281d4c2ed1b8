"""The options of vhost-user-vsock, by the names of rust-vmm's vhost-device-vsock."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from protocol.program.command_line import TWO_SOCKETS, UserError, whole_number
from protocol.program.socket_errors import cannot_listen
from protocol.virtio.vsock import FIRST_GUEST_CID, LAST_GUEST_CID
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.vsock.device import (
    DEFAULT_CID,
    DEFAULT_GROUP,
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_TX_BUFFER_SIZE,
    Vsock,
)
from vhost_user.devices.vsock.host import UnixSockets
from vhost_user.devices.vsock.siblings import Siblings
from vhost_user.simulation.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_CID = whole_number(FIRST_GUEST_CID, LAST_GUEST_CID)
_BUFFER_SIZE = whole_number(1024, 1 << 30)
_CONNECTIONS = whole_number(1, 1 << 20)


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(text.split("+"))
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of groups with '+' between them")
    return names


@dataclass(frozen=True)
class GuestOptions:
    """The options of one guest."""

    guest_cid: int
    uds_path: str | None
    tx_buffer_size: int
    max_connections: int
    groups: tuple[str, ...]


_TYPES: dict[str, Callable[[str], object]] = {
    "guest-cid": _CID,
    "socket": str,
    "uds-path": str,
    "tx-buffer-size": _BUFFER_SIZE,
    "max-connections": _CONNECTIONS,
    "groups": _groups,
}
"""The settings of --vm."""


class VsockProgram(DeviceProgram):
    """vhost-user-vsock."""

    device = Vsock

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add those of rust-vmm's vhost-device-vsock, and a limit of connections."""
        add_options(parser)

    def socket_paths(self, options: argparse.Namespace) -> list[str]:
        """Return the paths of --vm, or the one of --socket-path."""
        return [vm["socket"] for vm in options.vm] or super().socket_paths(options)

    def make(self, options: argparse.Namespace) -> list[Vsock]:
        """Return a device for each guest; with --vm, they share a simulation. Raises UserError."""
        return make_all(self.device, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vhost-user-vsock."""
    parser.add_argument(
        "--guest-cid",
        type=_CID,
        default=DEFAULT_CID,
        metavar="CID",
        help="the guest's CID (default: %(default)s)",
    )
    parser.add_argument(
        "--uds-path",
        metavar="PATH",
        help="let programs of the host connect to the guest at PATH; it connects to them at PATH_PORT",
    )
    parser.add_argument(
        "--tx-buffer-size",
        type=_BUFFER_SIZE,
        default=DEFAULT_TX_BUFFER_SIZE,
        metavar="N",
        help="buffer at most N bytes of each connection for the host (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=_CONNECTIONS,
        default=DEFAULT_MAX_CONNECTIONS,
        metavar="N",
        help="allow a guest at most N connections at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        type=_groups,
        default=DEFAULT_GROUP,
        metavar="A+B",
        help="the guest's groups; guests in a common group can connect to each other (default: %(default)s)",
    )
    parser.add_argument(
        "--vm",
        type=_vm,
        action="append",
        default=[],
        metavar="SETTINGS",
        help=f"a guest, in the place of --socket-path: {','.join(f'{name}=...' for name in _TYPES)}; may be"
        " repeated; other options give the values that it leaves out",
    )


def guests(options: argparse.Namespace) -> list[GuestOptions]:
    """Return the options of each guest. Raises UserError."""
    _check_paths(options)
    common = {field.name: getattr(options, field.name) for field in fields(GuestOptions)}
    if not options.vm:
        return [GuestOptions(**common)]
    if options.socket_path is not None or options.uds_path is not None:
        raise UserError(
            "--vm says where each guest's sockets are (socket=, uds-path=);"
            " leave out --socket-path and --uds-path"
        )
    settings = [{name: value for name, value in vm.items() if name != "socket"} for vm in options.vm]
    return [GuestOptions(**{**common, **vm}) for vm in settings]


def _check_reach(found: Sequence[GuestOptions], *, by_vm: bool) -> None:
    """Raise UserError for a guest that can reach neither the host nor another guest.

    `by_vm` says that --vm describes them, beside which --uds-path would be refused.
    """
    for guest in found:
        siblings = (other for other in found if other is not guest)
        if guest.uds_path is None and not any(set(guest.groups) & set(other.groups) for other in siblings):
            how = "uds-path= in its --vm" if by_vm else "--uds-path PATH"
            raise UserError(
                f"guest {guest.guest_cid} can reach neither a program of the host nor another guest;"
                f" give {how}, or further guests in a common group by --vm"
            )


def _check_paths(options: argparse.Namespace) -> None:
    """Raise UserError for a path that is given twice: it would seem to be in use by another program."""
    paths = [options.socket_path, options.uds_path]
    paths += [vm.get(name) for vm in options.vm for name in ("socket", "uds_path")]
    for path in paths:
        if path is not None and paths.count(path) > 1:
            raise UserError(TWO_SOCKETS.format(path))


def make_all(kind: type[Vsock], options: argparse.Namespace) -> list[Vsock]:
    """Return a device for each guest; with --vm, they share a simulation of which each is a part.

    The caller closes them. Raises UserError.
    """
    siblings = Siblings()
    with ExitStack() as stack:
        devices = []
        found = guests(options)
        _check_reach(found, by_vm=bool(options.vm))
        for guest in found:
            devices.append(device := _make(kind, guest, siblings))
            stack.callback(device.close)
        stack.pop_all()
    if options.vm:
        whole = Simulation()
        for device in devices:
            whole.add_part(str(device.guest_cid), device.simulation)
            device.simulation = whole
    return devices


def _make(kind: type[Vsock], guest: GuestOptions, siblings: Siblings) -> Vsock:
    with ExitStack() as stack:
        host = None
        if guest.uds_path is not None:
            try:
                host = UnixSockets(guest.uds_path, guest.max_connections)
            except OSError as error:
                raise cannot_listen(guest.uds_path, error) from None
            stack.callback(host.close)
        try:
            device = kind(
                guest.guest_cid,
                host=host,
                tx_buffer_size=guest.tx_buffer_size,
                max_connections=guest.max_connections,
                groups=guest.groups,
                siblings=siblings,
            )
        except ValueError as error:
            raise UserError(f"{error}; give each its own (guest-cid=)") from None
        stack.pop_all()
    return device


def _vm(text: str) -> dict[str, object]:
    """Return the settings of one guest, named as the fields of GuestOptions."""
    found: dict[str, object] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        name = name.replace("_", "-")  # rust-vmm's takes both
        if name not in _TYPES or not value:
            raise argparse.ArgumentTypeError(
                f"'{part}' is none of {', '.join(f'{one}=...' for one in _TYPES)}"
            )
        found[name.replace("-", "_")] = _TYPES[name](value)
    if "socket" not in found:
        raise argparse.ArgumentTypeError(f"'{text}' does not say where QEMU connects (socket=PATH)")
    return found

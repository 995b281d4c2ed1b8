"""The options of vhost-user-net for a tap device of the host, and how one is opened."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, Any

from protocol.fds import OwnedFd
from protocol.program.command_line import UserError, whole_number
from vhost_user.devices.net.ports import tun
from vhost_user.devices.net.ports.tap import Tap
from vhost_user.devices.net.ports.tun import MAX_NAME, TapFlag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.devices.net.ports.port import NetPort

NAME = "--tap, --tap-fd"

_TAP_TYPE = 2
_UP = 1

_log = logging.getLogger("vhost_user.net")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--tap` and what belongs to it."""
    parser.add_argument(
        "--tap",
        type=_name,
        metavar="NAME",
        help="plug the card into the host's tap device NAME; a missing one is made, and removed at the end",
    )
    parser.add_argument(
        "--netns", metavar="NAME", help="the network namespace of the tap, by its name in 'ip netns'"
    )
    parser.add_argument(
        "--tap-fd",
        type=whole_number(0, 1 << 20),
        action="append",
        default=[],
        metavar="N",
        help="use the inherited descriptor N, a tap; may be given once for each pair of queues",
    )


def is_chosen(options: argparse.Namespace) -> bool:
    """Return whether the command line has `--tap` or `--tap-fd`."""
    return options.tap is not None or bool(options.tap_fd)


def make_ports(options: argparse.Namespace, count: int) -> list[NetPort]:
    """Open the tap that the command line names. Raises UserError."""
    if count > 1:
        raise UserError(f"a tap is for one guest: give one socket, and not {count}")
    if options.tap_fd:
        if options.tap is not None or options.netns is not None:
            raise UserError("--tap-fd is a tap that is open already: leave --tap and --netns out")
        return [inherited_tap(options.tap_fd, options.queues)]
    return [open_tap(options.tap, queues=options.queues, mtu=options.mtu, netns=options.netns)]


def open_tap(name: str, *, queues: int = 1, mtu: int | None = None, netns: str | None = None) -> Tap:
    """Open the tap `name`, as many times as there are pairs of queues, and set it up.

    Where there is none it is made, with this `mtu`; it goes when it is closed. Raises UserError.
    """
    pyroute2 = _library()
    with _inside(pyroute2, netns), pyroute2.IPRoute() as ip:
        link = _find(ip, name)
        if link is not None and not _is_tap(link):
            raise UserError(f"{name} is not a tap device; give --tap another name")
        multi_queue = _has_queues(link) if link is not None else queues > 1
        if queues > 1 and not multi_queue:
            raise UserError(
                f"{name} has one queue, and not {queues}: make it again with"
                f" 'ip tuntap add {name} mode tap multi_queue', or leave --queues out"
            )
        fds = _open_queues(name, queues, multi_queue=multi_queue, made=link is None)
        try:
            if link is None and mtu is not None:
                ip.link("set", index=ip.link_lookup(ifname=name)[0], mtu=mtu)
            return Tap(name, fds, mtu=_bring_up(pyroute2, ip, name))
        except (OSError, pyroute2.NetlinkError) as error:
            for fd in fds:
                fd.close()
            raise UserError(f"cannot use {name}: {error}; is it a tap?") from None


def inherited_tap(numbers: list[int], queues: int) -> Tap:
    """Use a tap that is open as the descriptors `numbers`. Raises UserError."""
    if queues not in {1, len(numbers)}:
        raise UserError(f"--queues {queues} with {len(numbers)} of --tap-fd: give one for each, or none")
    for number in numbers:
        try:
            flags = tun.flags_of(number)
        except OSError as error:
            raise UserError(
                f"descriptor {number} is not a tap: {error.strerror}; give one that is open"
            ) from None
        if not {TapFlag.TAP, TapFlag.VNET_HDR, TapFlag.NO_PI} <= set(flags):
            raise UserError(f"descriptor {number} has to be a tap with IFF_VNET_HDR and IFF_NO_PI")
    fds = [OwnedFd(number) for number in numbers]
    for fd in fds:
        os.set_blocking(fd.fileno(), False)
        os.set_inheritable(fd.fileno(), False)
    return Tap(f"the tap of descriptor {numbers[0]}", fds)


def _name(text: str) -> str:
    if not text or not text.isprintable() or "/" in text or len(os.fsencode(text)) > MAX_NAME:
        raise argparse.ArgumentTypeError(f"'{text}' is not a name of 1 to {MAX_NAME} characters")
    return text


def _library() -> Any:
    # It misses /proc/net/psched where that is hidden, for what we do not use.
    logging.getLogger("pyroute2.netlink.rtnl.tcmsg").setLevel(logging.ERROR)
    try:
        import pyroute2  # it takes a while, and is not needed by other devices
        import pyroute2.netns
    except ImportError:
        raise UserError("--tap needs pyroute2: pip install 'qemu-companion[net]'") from None
    for talkative in ("pyroute2", "asyncio"):  # with -v, which is about the front-end
        logging.getLogger(talkative).setLevel(logging.WARNING)
    return pyroute2


@contextlib.contextmanager
def _inside(pyroute2: Any, netns: str | None) -> Iterator[None]:
    """Be in another network namespace for a while. Raises UserError."""
    if netns is None:
        yield
        return
    if "/" not in netns and netns not in pyroute2.netns.listnetns():  # it would be made
        raise UserError(f"there is no network namespace {netns}; 'ip netns' lists those that there are")
    try:
        pyroute2.netns.pushns(netns)
    except OSError as error:
        raise UserError(
            f"cannot enter the network namespace {netns}: {os.strerror(error.errno or 0)}; that is for root"
        ) from None
    try:
        yield
    finally:
        pyroute2.netns.popns()


def _find(ip: Any, name: str) -> Any:
    found = ip.link_lookup(ifname=name)
    return ip.get_links(found[0])[0] if found else None


def _tun_data(link: Any) -> Any:
    info = link.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "tun":
        return None
    return info.get_attr("IFLA_INFO_DATA")


def _is_tap(link: Any) -> bool:
    data = _tun_data(link)
    return data is not None and data.get_attr("IFLA_TUN_TYPE") == _TAP_TYPE


def _has_queues(link: Any) -> bool:
    return bool(_tun_data(link).get_attr("IFLA_TUN_MULTI_QUEUE"))


def _open_queues(name: str, count: int, *, multi_queue: bool, made: bool) -> list[OwnedFd]:
    fds: list[OwnedFd] = []
    try:
        while len(fds) < count:
            fds.append(tun.open_queue(name, multi_queue=multi_queue))
    except OSError as error:
        for fd in fds:
            fd.close()
        raise UserError(_cause_and_remedy(error, name, multi_queue=multi_queue, made=made)) from None
    return fds


def _cause_and_remedy(error: OSError, name: str, *, multi_queue: bool, made: bool) -> str:
    if error.filename is not None:
        remedy = "chmod 666 " + tun.DEVICE if error.errno == errno.EACCES else "modprobe tun"
        return f"cannot open {tun.DEVICE}: {error.strerror}; as root: {remedy}"
    if error.errno == errno.EPERM:
        queues = " multi_queue" if multi_queue else ""
        what = "make" if made else "open"
        return (
            f"no permission to {what} {name}; as root: ip tuntap add {name} mode tap{queues} user $USER"
            f" && ip link set {name} up"
        )
    if error.errno == errno.EBUSY:
        return f"{name} is in use by another program; stop it, or give --tap another name"
    return f"cannot open {name}: {error.strerror}; is it a tap, and has it as many queues?"


def _bring_up(pyroute2: Any, ip: Any, name: str) -> int:
    """Set the tap up if it is not, and return its MTU."""
    link = _find(ip, name)
    if not link["flags"] & _UP:
        try:
            ip.link("set", index=link["index"], state="up")
        except pyroute2.NetlinkError as error:
            _log.warning("%s is down (%s): as root, ip link set %s up", name, error.args[1], name)
    mtu: int = link.get_attr("IFLA_MTU")
    return mtu

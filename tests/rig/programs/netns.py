"""A network namespace for tests, with taps in it, and unreachable from outside."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyroute2
import pyroute2.netns

from vhost_user.devices.net.ports import tun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol.fds import OwnedFd

ETH_P_ALL = 3
_TUNSETPERSIST, _TUNSETOWNER = 0x400454CB, 0x400454CC
_DIRECTORY = "/run/netns"


def unavailable() -> str:
    """Return why there can be none here, in a line; "" where there can."""
    if os.geteuid():
        return "network namespaces and taps need root"
    return "" if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"  # noqa: PTH110


@dataclass(frozen=True)
class Namespace:
    """A network namespace by its name, as `ip netns` has it."""

    name: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in it."""
        return ["nsenter", f"--net={_DIRECTORY}/{self.name}", "--", *argv]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it; sockets that are made meanwhile stay."""
        pyroute2.netns.pushns(self.name)
        try:
            yield
        finally:
            pyroute2.netns.popns()

    def add_tap(self, name: str, *, multi_queue: bool = False, mtu: int = 1500, user: int = 0) -> None:
        """Add a tap of a user's that stays when it is not open."""
        with self._routes() as ip, tun.open_queue(name, multi_queue=multi_queue) as tap:
            fcntl.ioctl(tap.fileno(), _TUNSETPERSIST, 1)
            fcntl.ioctl(tap.fileno(), _TUNSETOWNER, user)
            ip.link("set", index=_index(ip, name), mtu=mtu)

    def open_tap(self, name: str) -> OwnedFd:
        """Return a queue of a tap, as another program than ours has it; the caller closes it."""
        with self.entered():
            return tun.open_queue(name, multi_queue=False)

    def address(self, name: str, address: str, prefix: int = 24) -> None:
        """Give an interface an address, and set it up."""
        with self._routes() as ip:
            ip.addr("add", index=_index(ip, name), address=address, prefixlen=prefix)
            ip.link("set", index=_index(ip, name), state="up")

    def link(self, name: str) -> dict[str, object]:
        """Return what the kernel says of an interface: its flags as `flags`, attributes by name."""
        with self._routes() as ip:
            (link,) = ip.get_links(_index(ip, name))
            return {"flags": link["flags"], **dict(link["attrs"])}

    def has(self, name: str) -> bool:
        """Tell whether there is an interface of this name."""
        with self._routes() as ip:
            return bool(ip.link_lookup(ifname=name))

    def remove(self, name: str) -> None:
        """Remove an interface."""
        with self._routes() as ip:
            ip.link("del", index=_index(ip, name))

    def packets(self, name: str) -> socket.socket:
        """Return a socket for all frames of an interface."""
        with self.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.bind((name, 0))
        return sock

    @contextmanager
    def _routes(self) -> Iterator[pyroute2.IPRoute]:
        with self.entered(), pyroute2.IPRoute() as ip:
            yield ip


def _index(ip: pyroute2.IPRoute, name: str) -> int:
    (index,) = ip.link_lookup(ifname=name)
    return int(index)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make one; it is gone when the block ends, with what is in it."""
    name = f"test-{secrets.token_hex(4)}"
    pyroute2.netns.create(name)
    try:
        yield Namespace(name)
    finally:
        pyroute2.netns.remove(name)

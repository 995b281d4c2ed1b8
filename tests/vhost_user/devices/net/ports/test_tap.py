"""Taps of the host as ports, in a network namespace of each test's own."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.program.command_line import UserError
from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER, GsoType, HeaderFlag, NetFeature
from tests.vhost_user.devices.net.driver import MAC, MERGING, OTHER, begin, frame
from tests.vhost_user.raw_frontend import attached, until
from vhost_user.devices.net import tap_options as net_tap_options
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.options import add_options
from vhost_user.devices.net.ports import tun as tun_module
from vhost_user.devices.net.tap_options import inherited_tap, open_tap

if TYPE_CHECKING:
    from tests.rig.programs.netns import Namespace

SECONDS = 60
SOL_PACKET, PACKET_VNET_HDR = 263, 15
UP = 1
TYPE = b"\x88\xb5"
"""An Ethernet type for experiments: nothing in the kernel answers to it."""


@pytest.fixture
def tap(net: Namespace) -> str:
    """A tap that is there and up."""
    net.add_tap("tap0")
    net.address("tap0", "192.0.2.1")
    return "tap0"


def experiment(size: int, seed: int = 0) -> bytes:
    """Return a frame that nothing but a test listens to."""
    data = frame(size, to=OTHER, seed=seed)
    return data[: HEADER.size + 12] + TYPE + data[HEADER.size + 14 :]


async def next_of_ours(sock: socket.socket) -> bytes:
    """Return the next frame of a test's."""
    with trio.fail_after(SECONDS):
        while True:
            await trio.lowlevel.wait_readable(sock)
            data = sock.recv(1 << 17)
            if data[12:14] == TYPE:
                return data


async def test_frames_go_both_ways(net: Namespace, tap: str) -> None:
    with net.packets(tap) as host, Net(open_tap(tap, netns=net.name)) as device:
        async with attached(device) as front:
            rx, tx = await begin(front, MERGING, 0, 1)
            for size in (60, 1514):
                sent = experiment(size, seed=size)
                await tx.exchange([sent[:5], sent[5:]], [])
                assert await next_of_ours(host) == sent[HEADER.size :]
                host.send(sent[HEADER.size :])
                got = b""
                while got[HEADER.size + 12 :][:2] != TYPE:
                    rx.submit([], [64, 2000])
                    ((*parts,),) = await rx.wait()
                    got = b"".join(parts)
                assert got[HEADER.size :] == sent[HEADER.size :]
                assert got[10:12] == b"\1\0"


def tcp_segments(size: int) -> bytes:
    """Return a large TCP/IPv4 segment for the host's address that the receiver is to see as it is."""
    ip_length = 20 + 20 + size
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, ip_length, 1, 0, 64, 6, 0),
        *(socket.inet_aton("192.0.2.2"), socket.inet_aton("192.0.2.1")),
    )
    total = sum(struct.unpack(">10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack(">H", ~(total & 0xFFFF) + (total >> 16) & 0xFFFF) + ip[12:]
    tcp = struct.pack(">HHIIBBHHH", 1234, 5678, 1, 0, 0x50, 0x10, 1000, 0, 0)
    header = HEADER.pack(HeaderFlag.NEEDS_CSUM, GsoType.TCPV4, 54, 1448, 34, 16, 0)
    return header + OTHER + MAC + b"\x08\x00" + ip + tcp + bytes(size)


async def test_segment_of_64_kib_goes_to_the_host_in_one(net: Namespace, tap: str) -> None:
    with net.packets(tap) as host, Net(open_tap(tap, netns=net.name)) as device:
        host.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        async with attached(device) as front:
            (tx,) = await begin(front, Feature(MERGING | NetFeature.CSUM | NetFeature.HOST_TSO4), 1)
            sent = tcp_segments(60_000)
            await tx.exchange([sent[:12], sent[12:66], sent[66:]], [])
            got = b""
            while len(got) < len(sent) - 2:
                with trio.fail_after(SECONDS):
                    await trio.lowlevel.wait_readable(host)
                got = host.recv(1 << 17)
            assert got[:2] == bytes([HeaderFlag.NEEDS_CSUM, GsoType.TCPV4])
            assert got[10:] == sent[12:]


@pytest.mark.parametrize(
    "sent",
    [
        HEADER.pack(HeaderFlag.NEEDS_CSUM, 0, 0, 0, 60_000, 0, 0) + frame(60)[12:],
        HEADER.pack(0, 77, 0, 100, 0, 0, 0) + frame(60)[12:],
    ],
)
async def test_frame_with_a_header_that_is_wrong_is_dropped_and_counted(
    net: Namespace, tap: str, sent: bytes
) -> None:
    with net.packets(tap) as host, Net(open_tap(tap, netns=net.name)) as device:
        async with attached(device) as front:
            (tx,) = await begin(front, Feature(MERGING | NetFeature.CSUM), 1)
            assert await tx.exchange([sent], []) == []
            assert device.net.statistics()["from_guest_dropped"] == 1
            good = experiment(60)
            await tx.exchange([good], [])
            assert await next_of_ours(host) == good[HEADER.size :]


async def test_frame_of_more_pieces_than_the_kernel_takes(net: Namespace, tap: str) -> None:
    with net.packets(tap) as host, Net(open_tap(tap, netns=net.name)) as device:
        async with attached(device) as front:
            await front.negotiate(MERGING)
            await front.share_memory()
            rx, tx = front.queue(0, 2048), front.queue(1, 2048)
            await tx.start()
            sent = experiment(1300)
            await tx.exchange([sent[at : at + 1] for at in range(len(sent))], [])
            assert await next_of_ours(host) == sent[HEADER.size :]
            rx.submit([], [1] * 2000)
            await rx.start()
            host.send(sent[HEADER.size :])
            ((*parts,),) = await rx.wait()
            assert len(b"".join(parts)) > HEADER.size + 14


async def test_tap_that_is_not_there_is_made_and_goes_again(net: Namespace) -> None:
    with open_tap("new0", queues=2, mtu=3000, netns=net.name) as port:
        link = net.link("new0")
        assert (int(link["flags"]) & UP, link["IFLA_MTU"]) == (UP, 3000)  # type: ignore[call-overload]
        assert (port.queue_pairs, port.mtu) == (2, 3000)
    assert not net.has("new0")


async def test_mtu_of_a_tap_is_the_guests(net: Namespace) -> None:
    net.add_tap("tap0", mtu=9000)
    with open_tap("tap0", netns=net.name) as port:
        assert port.mtu == 9000
    assert net.link("tap0")["IFLA_MTU"] == 9000


async def test_host_sees_the_link_go_down(net: Namespace, tap: str) -> None:
    with Net(open_tap(tap, netns=net.name)) as device:
        assert net.link(tap)["IFLA_CARRIER"] == 1
        device.set_link(False)
        assert net.link(tap)["IFLA_CARRIER"] == 0
        device.set_link(True)
        assert net.link(tap)["IFLA_CARRIER"] == 1


async def test_guest_loses_its_link_when_the_tap_is_removed(net: Namespace, tap: str) -> None:
    with Net(open_tap(tap, netns=net.name)) as device:
        async with attached(device) as front:
            rx, tx = await begin(front, MERGING, 0, 1)
            rx.submit([], [2000])
            net.remove(tap)
            await until(lambda: not device.net.link())
            assert await tx.exchange([frame(60)], []) == []
            assert device.from_guest.dropped == 1
        async with attached(device) as front:
            rx, tx = await begin(front, Feature(MERGING | NetFeature.GUEST_CSUM), 0, 1)
            assert await tx.exchange([frame(60)], []) == []
            assert not device.net.link()


async def test_queues_are_attached_while_they_are_used(net: Namespace) -> None:
    net.add_tap("tap0", multi_queue=True)
    net.address("tap0", "192.0.2.1")

    def attached_queues() -> object:
        data = net.link("tap0")["IFLA_LINKINFO"].get_attr("IFLA_INFO_DATA")  # type: ignore[attr-defined]
        return data.get_attr("IFLA_TUN_NUM_QUEUES"), data.get_attr("IFLA_TUN_NUM_DISABLED_QUEUES")

    with net.packets("tap0") as host, Net(open_tap("tap0", queues=3, netns=net.name)) as device:
        assert attached_queues() == (1, 2)
        async with attached(device) as front:
            _, _, second, tx = await begin(front, Feature(MERGING | NetFeature.MQ), 0, 2, 4, 5)
            await until(lambda: attached_queues() == (3, 0))
            await second.stop()
            assert attached_queues() == (2, 1)
            await tx.exchange([experiment(60)], [])
            assert await next_of_ours(host) == experiment(60)[HEADER.size :]


async def test_pairs_that_send_over_the_same_queue_can_wait_for_it_together(net: Namespace) -> None:
    """As all do whose own one is not attached, because the guest does not receive over it."""
    net.add_tap("tap0", multi_queue=True)
    with open_tap("tap0", queues=3, netns=net.name) as port, trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for pair in range(3):
                nursery.start_soon(port.until_sendable, pair)


async def test_descriptor_of_a_tap_is_as_good_as_its_name(net: Namespace, tap: str) -> None:
    fd = net.open_tap(tap).detach()
    with net.packets(tap) as host, Net(inherited_tap([fd], 1)) as device:
        assert not os.get_inheritable(fd)
        async with attached(device) as front:
            (tx,) = await begin(front, MERGING, 1)
            await tx.exchange([experiment(60)], [])
            assert await next_of_ours(host) == experiment(60)[HEADER.size :]


# What a user can get wrong


def refusal(net: Namespace, name: str, queues: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        open_tap(name, queues=queues, netns=net.name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_interface_that_is_no_tap_is_refused(net: Namespace) -> None:
    assert refusal(net, "lo") == "lo is not a tap device; give --tap another name"


def test_tap_of_one_queue_is_refused_for_several(net: Namespace, tap: str) -> None:
    assert "tap0 has one queue, and not 2: make it again with 'ip tuntap add" in refusal(net, tap, 2)


def test_tap_of_several_queues_is_taken_for_one(net: Namespace) -> None:
    net.add_tap("tap0", multi_queue=True)
    with open_tap("tap0", netns=net.name) as port:
        assert port.queue_pairs == 1


def test_tap_that_is_in_use_is_refused(net: Namespace, tap: str) -> None:
    with open_tap(tap, netns=net.name):
        assert refusal(net, tap) == "tap0 is in use by another program; stop it, or give --tap another name"


def test_namespace_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="there is no network namespace none-of-these"):
        open_tap("tap0", netns="none-of-these")


def test_without_pyroute2_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(UserError, match=r"pip install 'qemu-companion\[net\]'"):
        open_tap("tap0")


UNPRIVILEGED = """
import os, sys
from protocol.program.command_line import UserError
from vhost_user.devices.net.ports import tun
from vhost_user.devices.net.tap_options import open_tap
import pyroute2.netns
pyroute2.IPRoute().close()
os.setgid(65534)
os.setuid(65534)
tun.DEVICE = sys.argv[2]
try:
    with open_tap(sys.argv[1]) as port:
        print("opened, MTU", port.mtu)
except UserError as error:
    print(error)
"""


@pytest.fixture
def tun(directory: Path) -> str:
    """A /dev/net/tun that everybody may open, as systems have it."""
    directory.chmod(0o711)
    path = directory / "tun"
    os.mknod(path, stat.S_IFCHR, os.makedev(10, 200))
    path.chmod(0o666)
    return str(path)


def unprivileged(net: Namespace, name: str, tun: str) -> str:
    """Return what comes of opening a tap as the user nobody."""
    argv = net.command([sys.executable, "-c", UNPRIVILEGED, name, tun])
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_user_without_permission_is_told_what_root_has_to_do(net: Namespace, tap: str, tun: str) -> None:
    for name, what in (("new0", "make"), (tap, "open")):
        told = unprivileged(net, name, tun)
        assert told.startswith(f"no permission to {what} {name}; as root: ip tuntap add {name} mode tap user")
    Path(tun).chmod(0)
    assert unprivileged(net, tap, tun).endswith(f"Permission denied; as root: chmod 666 {tun}")
    Path(tun).unlink()
    assert unprivileged(net, tap, tun).endswith("No such file or directory; as root: modprobe tun")


def test_tap_of_the_users_own_needs_no_root(net: Namespace, tun: str) -> None:
    net.add_tap("mine0", user=65534)
    assert unprivileged(net, "mine0", tun) == "opened, MTU 1500"


@pytest.mark.parametrize("kind", ["file", "socket", "nothing"])
def test_descriptor_that_is_no_tap_is_refused(kind: str) -> None:
    made = socket.socket() if kind == "socket" else Path(os.devnull).open()  # noqa: SIM115
    with made:
        number = 999 if kind == "nothing" else made.fileno()
        with pytest.raises(UserError, match=f"descriptor {number} is not a tap"):
            inherited_tap([number], 1)


def test_descriptor_of_a_tap_without_headers_is_refused(net: Namespace, tap: str) -> None:
    with net.entered(), Path(tun_module.DEVICE).open("r+b", buffering=0) as file:
        fcntl.ioctl(file, 0x400454CA, struct.pack("16sH22x", tap.encode(), 0x1002))
        with pytest.raises(UserError, match="has to be a tap with IFF_VNET_HDR"):
            inherited_tap([file.fileno()], 1)


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(argv)


def test_options_that_do_not_go_together() -> None:
    for argv, count, message in (
        (["--tap", "tap0"], 2, "a tap is for one guest"),
        (["--tap", "tap0", "--tap-fd", "5"], 1, "leave --tap and --netns out"),
        (["--tap-fd", "5", "--queues", "2"], 1, "--queues 2 with 1 of --tap-fd"),
    ):
        with pytest.raises(UserError, match=message):
            net_tap_options.make_ports(options(*argv), count)


@pytest.mark.parametrize("name", ["", "a/b", "sixteen-letters-"])
def test_name_that_no_interface_can_have_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--tap", name)
    assert "is not a name of 1 to 15 characters" in capsys.readouterr().err

"""Wireshark's tshark reads captures of vhost-user-net, complete ones and growing ones."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER
from tests.peers import counterparts, pings
from tests.peers.cards import HERE, THERE, Card
from tests.rig.debian import packages
from tests.rig.programs import process
from tests.rig.programs.backend import command, start_program, until_printed
from vhost_user import frontend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.peers

SECONDS = 60
ONE, OTHER = pings.Host(HERE, "192.0.2.1"), pings.Host(THERE, "192.0.2.2")
FIELDS = (
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.len",
    "icmp.seq",
    "icmp.checksum.status",
)
INBOUND, OUTBOUND, GOOD = "0x00000001", "0x00000002", "1"
DATA = bytes(range(200))


def tshark(*arguments: str) -> list[str]:
    """Return a command line that prints FIELDS of each frame."""
    root = counterparts.tshark()
    fields = [argument for field in FIELDS for argument in ("-e", field)]
    return [
        str(packages.program(root, "tshark")),
        "-n",
        *arguments,
        "-T",
        "fields",
        "-E",
        "separator=,",
        *fields,
    ]


def seen(number: int) -> list[str]:
    """Return what is to be printed of a ping that went from one end of the cable to the other."""
    size = len(ping(number))
    return [
        f"port0,{INBOUND},{size},{number},{GOOD}",
        f"port1,{OUTBOUND},{size},{number},{GOOD}",
    ]


def ping(number: int) -> bytes:
    return pings.echo(ONE, OTHER, number, DATA[: number * 20])


@asynccontextmanager
async def cable(directory: Path, capture: Path) -> AsyncIterator[tuple[Card, Card]]:
    """Have a driver at both ends of a cable, on which all frames are captured."""
    path = directory / "net.sock"
    argv = command(
        "net", *("--link", "--socket-count", "2", "--socket-path", str(path), "--pcap", str(capture))
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(start_program(directory, argv, "backend"))
        cards = []
        for end in range(2):
            front = await stack.enter_async_context(frontend.connect(f"{path}{end}", patience=SECONDS))
            await front.negotiate(Feature.VERSION_1)
            cards.append(await Card.start(front))
        yield cards[0], cards[1]


async def send(card: Card, other: Card, frame: bytes) -> None:
    """Send a frame to the other end."""
    receiving = other.rx.submit(2048)
    await card.tx.request(bytes(HEADER.size), frame)
    assert (await other.rx.wait(receiving))[HEADER.size :] == frame


async def test_capture_is_what_was_sent(directory: Path) -> None:
    capture = directory / "net.pcapng"
    async with cable(directory, capture) as (one, other):
        for number in range(1, 6):
            await send(one, other, ping(number))
        await send(other, one, pings.is_at(OTHER, ONE))
    async with process.start(tshark("-r", str(capture))) as program:
        assert await program.wait() == 0
        lines = [line for line in program.output().splitlines() if line.startswith("port")]
    arp = f"{len(pings.is_at(OTHER, ONE))},,"
    expected = [line for number in range(1, 6) for line in seen(number)]
    assert lines == [*expected, f"port1,{INBOUND},{arp}", f"port0,{OUTBOUND},{arp}"]


async def test_capture_is_read_while_it_is_made(directory: Path) -> None:
    capture = directory / "fifo"
    os.mkfifo(capture)
    async with (
        cable(directory, capture) as (one, other),
        process.start(tshark("-l", "-i", str(capture))) as program,
    ):
        for number in range(1, 4):
            while not program.output().count(seen(number)[1]):  # frames before it reads are not captured
                await send(one, other, ping(number))
                with trio.move_on_after(1):
                    await until_printed(program, seen(number)[1])
        program.terminate()
        with trio.fail_after(SECONDS):
            await program.wait()

"""Commands of ivshmem-client about other peers: dump, ring, wait, watch, ping, pong."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from ivshmem_server.peer import Change, NoSuchPeerError, PeerJoined
from ivshmem_server.sizes import format_size
from protocol.program.command_line import UserError, number, positive_number, seconds
from protocol.words import plural

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterable

    from ivshmem_server.peer import Peer

ALL = None
"""In the place of a peer or a vector: all of them."""

PING_SECONDS = 1.0

NEWCOMER_SECONDS = 5.0
"""How long after a ring 'pong' learns of the peer that it may have come from."""


@dataclass(frozen=True)
class PeerCommand:
    """A command that needs a server: its name, its line in the help, its arguments, what it does.

    One that `lasts` prints when something happens, which may be never: it ends when its output has no reader.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Peer, argparse.Namespace], Awaitable[None]]
    lasts: bool = True


def number_or_all(text: str) -> int | None:
    """Return the number that `text` says, or ALL for "all". For argparse: raises ArgumentTypeError."""
    return ALL if text == "all" else number(text)


# What is printed


def describe(peer: Peer) -> list[str]:
    """Return who we are, what memory there is and who else is connected, a line each."""
    return [
        f"us: peer {peer.id}, {plural(peer.vectors, 'vector')}",
        f"memory: {format_size(len(peer.memory))}",
        *(f"peer {other}: {plural(count, 'vector')}" for other, count in sorted(peer.peers.items())),
    ]


def describe_change(change: Change) -> str:
    """Return the line for a peer that came or went."""
    if isinstance(change, PeerJoined):
        return f"peer {change.id} joined with {plural(change.vectors, 'vector')}"
    return f"peer {change.id} left"


def describe_interrupt(vector: int, count: int) -> str:
    """Return the line for rings on one of our vectors."""
    return f"receive notification vector={vector} count={count}"


_ATTACH = "attach a guest or another client first"

SERVER_GONE = "the server has gone; doorbells go on, joins and leaves go unnoticed"


def _document(peer: Peer) -> dict[str, object]:
    return {
        "id": peer.id,
        "vectors": peer.vectors,
        "memory": len(peer.memory),
        "peers": [{"id": other, "vectors": count} for other, count in sorted(peer.peers.items())],
    }


def say(text: str) -> None:
    """Print a line that somebody waits for, perhaps at the other end of a pipe."""
    print(text, flush=True)


# Each command


def _dump_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")


async def _dump(peer: Peer, options: argparse.Namespace) -> None:
    await trio.lowlevel.checkpoint()
    print(json.dumps(_document(peer)) if options.json else "\n".join(describe(peer)))


def _ring_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "peer", type=number_or_all, metavar="PEER", help="whom to ring: an id, or 'all' others"
    )
    parser.add_argument("vector", type=number_or_all, metavar="VECTOR", help="on which vector, or on 'all'")


async def _ring(peer: Peer, options: argparse.Namespace) -> None:
    await trio.lowlevel.checkpoint()
    if options.peer is ALL and not peer.peers:
        raise UserError(f"no other peer is connected; {_ATTACH}")
    _expect_another(peer, options.peer)
    ring(peer, options.peer, options.vector)


def _expect_another(peer: Peer, whom: int | None) -> None:
    """Raise UserError for our own id: whoever gave it meant a guest, before the server gave it to us."""
    if whom == peer.id:
        others = " and ".join(f"peer {other}" for other in sorted(peer.peers)) or "nobody"
        raise UserError(f"peer {whom} is ourselves, and besides us there is {others}; {_ATTACH}")


def ring(peer: Peer, whom: int | None, vector: int | None) -> None:
    """Ring one peer or ALL others, on one vector or ALL that it has. Raises NoSuchPeerError."""
    for other in list(peer.peers) if whom is ALL else [whom]:
        count = peer.vectors if other == peer.id else peer.peers.get(other, 1)
        for each in range(count) if vector is ALL else [vector]:
            peer.ring(other, each)


def _wait_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vector", type=number, metavar="VECTOR", help="the vector to be rung on")
    parser.add_argument(
        "--count", type=positive_number, default=1, metavar="N", help="wait for N rings (default: 1)"
    )
    _add_timeout(parser, None)


def _add_timeout(parser: argparse.ArgumentParser, default: float | None) -> None:
    shown = "for ever" if default is None else f"{default:g}"
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=default,
        metavar="S",
        help=f"give up after S seconds (default: {shown})",
    )


async def _wait(peer: Peer, options: argparse.Namespace) -> None:
    total = 0
    with trio.move_on_after(_or_for_ever(options.timeout)) as scope:
        while total < options.count:
            count = await peer.wait(options.vector)
            total += count
            say(describe_interrupt(options.vector, count))
    if scope.cancelled_caught:
        raise UserError(
            f"{total} of {plural(options.count, 'ring')} came on vector {options.vector}"
            f" within {options.timeout:g} s; is anybody ringing peer {peer.id}?"
        )


def _or_for_ever(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")


async def _watch(peer: Peer, options: argparse.Namespace) -> None:
    def show(text: str, event: str, **fields: object) -> None:
        say(json.dumps({"time": time.time(), "event": event, **fields}) if options.json else text)

    async def show_interrupts(vector: int) -> None:
        while True:
            count = await peer.wait(vector)
            show(describe_interrupt(vector, count), "interrupt", vector=vector, count=count)

    changes = peer.changes()
    show("\n".join(describe(peer)), "connected", **_document(peer))
    async with trio.open_nursery() as nursery:
        for vector in range(peer.vectors):
            nursery.start_soon(show_interrupts, vector)
        async for change in changes:
            name = "joined" if isinstance(change, PeerJoined) else "left"
            show(describe_change(change), name, **vars(change))
        show(SERVER_GONE, "server-gone")


def _ping_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", type=number, metavar="PEER", help="a peer that runs 'ivshmem-client pong'")
    _add_vector(parser)
    parser.add_argument(
        "--count", type=positive_number, default=10, metavar="N", help="ring N times (default: 10)"
    )
    parser.add_argument(
        "--interval", type=seconds, default=0.1, metavar="S", help="seconds between rings (default: 0.1)"
    )
    _add_timeout(parser, PING_SECONDS)
    parser.add_argument("-q", "--quiet", action="store_true", help="print the summary only")


def _add_vector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vector", type=number, default=0, metavar="V", help="ring and be rung on V (default: 0)"
    )


async def _ping(peer: Peer, options: argparse.Namespace) -> None:
    _expect_another(peer, options.peer)
    times: list[float] = []
    for turn in range(options.count):
        if turn:
            await trio.sleep(options.interval)
        times.append(await _round_trip(peer, options))
        if not options.quiet:
            say(f"answer from peer {options.peer}: time={times[-1]:.1f} us")
    print(f"{plural(len(times), 'ring')}, round trip {_summary(times)}")


async def _round_trip(peer: Peer, options: argparse.Namespace) -> float:
    """Ring and wait for the answer; return the microseconds that took."""
    start = time.perf_counter_ns()
    peer.ring(options.peer, options.vector)
    with trio.move_on_after(options.timeout):
        await peer.wait(options.vector)
        return (time.perf_counter_ns() - start) / 1000
    raise UserError(
        f"peer {options.peer} did not answer within {options.timeout:g} s;"
        f" let it run 'ivshmem-client pong --vector {options.vector}'"
    )


def _summary(times: list[float]) -> str:
    ordered = sorted(times)
    values = {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "99%": ordered[(len(ordered) * 99 - 1) // 100],
        "max": ordered[-1],
    }
    return ", ".join(f"{name} {value:.1f} us" for name, value in values.items())


def _pong_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "peer",
        type=number,
        nargs="?",
        default=ALL,
        metavar="PEER",
        help="answer only this peer (default: all)",
    )
    _add_vector(parser)


async def _pong(peer: Peer, options: argparse.Namespace) -> None:
    _expect_another(peer, options.peer)
    answered: set[int] = set()
    last_ring = float("-inf")

    def answer(others: Iterable[int]) -> None:
        for other in others:
            if options.peer in {ALL, other}:
                answered.add(other)
                with contextlib.suppress(NoSuchPeerError):
                    peer.ring(other, options.vector)

    async def answer_newcomers() -> None:
        # The server tells of a peer, and the peer rings: what comes first here is chance.
        async for change in changes:
            late = trio.current_time() - last_ring > NEWCOMER_SECONDS
            if not isinstance(change, PeerJoined):
                answered.discard(change.id)
            elif change.id not in answered and not late:
                answer([change.id])

    changes = peer.changes()
    say(f"peer {peer.id} answers on vector {options.vector}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_newcomers)
        while True:
            await peer.wait(options.vector)
            last_ring = trio.current_time()
            answered.clear()
            answer(list(peer.peers))  # nobody tells who rang


PEER_COMMANDS = (
    PeerCommand("dump", "print who is connected", _dump_arguments, _dump, lasts=False),
    PeerCommand("ring", "ring other peers' doorbells: interrupt them", _ring_arguments, _ring, lasts=False),
    PeerCommand("wait", "wait until somebody rings us", _wait_arguments, _wait),
    PeerCommand("watch", "print joins, leaves and interrupts as they come", _watch_arguments, _watch),
    PeerCommand("ping", "time round trips with a peer that runs 'pong'", _ping_arguments, _ping),
    PeerCommand("pong", "ring back whenever somebody rings us", _pong_arguments, _pong),
)

"""One of two peers that ring each other: `python -m tests.bench.doorbell ping|pong SOCKET ROUNDS`.

The pinging one prints the round-trip times as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING

import trio

import ivshmem_server

if TYPE_CHECKING:
    from ivshmem_server import Peer

_WARM_UP = 1000


async def _other(peer: Peer) -> int:
    changes = peer.changes()
    while not peer.peers:
        await anext(changes)
    return next(iter(peer.peers))


async def _ping(peer: Peer, other: int, rounds: int) -> None:
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        peer.ring(other)
        await peer.wait()
        times.append((time.perf_counter_ns() - start) / 1000)
    steps = statistics.quantiles(times[_WARM_UP:], n=100)
    print(json.dumps({"median_us": steps[49], "p99_us": steps[98]}))


async def _pong(peer: Peer, other: int, rounds: int) -> None:
    for _ in range(rounds):
        await peer.wait()
        peer.ring(other)


async def _main(role: str, path: str, rounds: int) -> None:
    async with ivshmem_server.connect(path, vectors=1) as peer:
        play = _ping if role == "ping" else _pong
        await play(peer, await _other(peer), _WARM_UP + rounds)


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], sys.argv[2], int(sys.argv[3]))

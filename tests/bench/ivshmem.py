"""Our ivshmem server and peers, timed beside QEMU's C server: `python -m tests.bench.ivshmem`.

With IVSHMEM_SERVER=PATH both servers are measured in turn in one run. What is printed is the median
of the rounds. A figure that misses its expectation is marked, and is no failure: machines differ. A
message that our server loses is one.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.load import BenchError, JoinReport, RoundTrips, build, join_command
from tests.bench.servers import c_server, ours, running
from tests.bench.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.servers import Running, Server

JOINS = [(1, 1), (1, 2), (100, 1), (100, 2), (250, 1), (500, 1), (500, 2)]
"""Clients and vectors. 250 x 1 is about the most that the C server manages without losing messages."""
SCALE = [(1000, 2), (200, 8)]
"""Beyond what the C server can do: it aborts once it has a descriptor that select() cannot take."""

STARTS = 5
"""Start-up is measured this many times a round."""
DOORBELL_ROUNDS = 20_000
DOORBELL_SECONDS = 60

EXPECTED_START_MS = 250
EXPECTED_STOP_MS = 100
EXPECTED_JOIN_RATIO = 1.5
EXPECTED_JOIN_FROM = 250
"""The ratio is expected from so many clients on: with one it is the time of a single accept."""
EXPECTED_SCALE_MIB = 64
EXPECTED_DOORBELL_US = 40


class Bench:
    """Measures servers, and collects figures by row and server name."""

    def __init__(self, directory: Path, servers: list[Server], rounds: int) -> None:
        self.directory = directory
        self.servers = servers
        self.rounds = rounds
        self.load = build(directory)
        self.failures: list[str] = []
        """What our server lost, if anything."""

    def run(self) -> None:
        """Measure and print everything."""
        self.start_up()
        self.join()
        self.memory()
        self.stop()
        self.doorbell()
        self.scale()

    def start_up(self) -> None:
        """Time from the command to the listening socket."""
        times = defaultdict(list)
        for server in self.servers * (self.rounds * STARTS):
            with running(server, self.directory, 1) as process:
                times[server.name].append(process.start_seconds * 1000)
        table = Table("Start-up: command to listening socket", "ms")
        table.row("", times, expected=EXPECTED_START_MS)
        table.print()

    def join(self) -> None:
        """Time per message, from the first connect until every client has everything."""
        wall = Table("Join, all clients at once: time per message", "us")
        cpu = Table("Join: the server's CPU time per message", "us")
        for clients, vectors in JOINS:
            wall_us, cpu_us, losses = defaultdict(list), defaultdict(list), {}
            for server in self.servers * self.rounds:
                report, cpu_seconds = self._join_once(server, clients, vectors)
                if not report.complete:
                    losses[server.name] = report.lost
                if not report.closed:
                    wall_us[server.name].append(report.seconds * 1e6 / report.received)
                    cpu_us[server.name].append(cpu_seconds * 1e6 / report.received)
            name = f"{clients} clients x {vectors}"
            limit = EXPECTED_JOIN_RATIO if clients >= EXPECTED_JOIN_FROM else None
            wall.row(name, wall_us, expected_ratio=limit, notes=losses)
            cpu.row(name, cpu_us, notes=losses)
        wall.print()
        cpu.print()

    def memory(self) -> None:
        """Resident memory of the servers, idle and with clients."""
        resident = Table("Memory: resident (VmRSS)", "MiB")
        share = Table("Memory: proportional share (PSS)", "MiB")
        for name, clients in (("idle", 0), ("500 clients x 1", 500)):
            rss, pss = defaultdict(list), defaultdict(list)
            for server in self.servers:
                with self._joined(server, clients, 1) as (process, _):
                    memory = process.memory()
                rss[server.name].append(memory.resident / 1024)
                pss[server.name].append(memory.proportional / 1024)
            resident.row(name, rss)
            share.row(name, pss)
        resident.print()
        share.print()

    def stop(self) -> None:
        """Time from SIGTERM to the end, idle and with clients."""
        table = Table("Stop: SIGTERM to exit", "ms")
        for name, clients in (("idle", 0), ("500 clients x 1", 500)):
            times = defaultdict(list)
            for server in self.servers * self.rounds:
                with self._joined(server, clients, 1) as (process, _):
                    times[server.name].append(process.stop() * 1000)
            table.row(name, times, expected=EXPECTED_STOP_MS)
        table.print()

    def doorbell(self) -> None:
        """Round trip between two peers in two processes; two bare C processes show what the kernel takes."""
        times, tails = defaultdict(list), defaultdict(list)
        for _ in range(self.rounds):
            for name, trips in (("ours", self._doorbell_peers()), ("bare C", self._doorbell_bare())):
                times[name].append(trips.median_us)
                tails[name].append(trips.p99_us)
        table = Table("Doorbell, there and back between two processes", "us", other="bare C")
        table.row("median", times, expected=EXPECTED_DOORBELL_US)
        table.row("99th percentile", tails)
        table.print()

    def scale(self) -> None:
        """What the C server cannot do: how long it takes ours, and with how much memory."""
        times, peaks = Table("Scale: time", "s"), Table("Scale: most memory ever resident", "MiB")
        for clients, vectors in SCALE:
            seconds, peak, losses = defaultdict(list), defaultdict(list), {}
            for server in self.servers:
                with self._joined(server, clients, vectors) as (process, report):
                    if report.complete:
                        seconds[server.name].append(report.seconds)
                        peak[server.name].append(process.memory().peak / 1024)
                    else:
                        losses[server.name] = f"{report.lost}: {process.last_words()}"
            name = f"{clients} clients x {vectors}"
            times.row(name, seconds, notes=losses)
            peaks.row(name, peak, expected=EXPECTED_SCALE_MIB, notes=losses)
        times.print()
        peaks.print()

    def _join_once(self, server: Server, clients: int, vectors: int) -> tuple[JoinReport, float]:
        """Return the report, and the CPU time that the server has used since its start-up."""
        with self._joined(server, clients, vectors) as (process, report):
            return report, 0 if report.closed else process.cpu_seconds()

    @contextmanager
    def _joined(self, server: Server, clients: int, vectors: int) -> Iterator[tuple[Running, JoinReport]]:
        """Run a server, with clients joined, for the length of the block."""
        pipe = subprocess.PIPE
        with running(server, self.directory, vectors) as process:
            command = join_command(self.load, process.socket, clients, vectors, server.quiet)
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as load:
                assert load.stdout is not None
                report = JoinReport.parse(load.stdout.readline())
                if server.name == "ours" and not report.complete:
                    self.failures.append(f"{clients} clients x {vectors}: {report.lost}")
                yield process, report

    def _doorbell_peers(self) -> RoundTrips:
        with running(self.servers[0], self.directory, 1) as process:
            arguments = [str(process.socket), str(DOORBELL_ROUNDS)]
            command = [sys.executable, "-m", "tests.bench.doorbell"]
            with subprocess.Popen([*command, "pong", *arguments]) as pong:
                try:
                    return RoundTrips.parse(_output([*command, "ping", *arguments]))
                finally:
                    pong.kill()

    def _doorbell_bare(self) -> RoundTrips:
        return RoundTrips.parse(_output([str(self.load), "doorbell", str(DOORBELL_ROUNDS)]))


def _output(command: list[str]) -> str:
    pipe = subprocess.PIPE
    return subprocess.run(command, stdout=pipe, check=True, text=True, timeout=DOORBELL_SECONDS).stdout


def main() -> None:
    """Measure everything; exit with 1 if our server lost anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ivshmem", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure everything (%(default)s)")
    rounds = parser.parse_args().rounds
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the C server, which does not see to it
    servers = [ours()]
    if program := os.environ.get("IVSHMEM_SERVER"):
        servers.append(c_server(program))
    else:
        print("IVSHMEM_SERVER=PATH (QEMU's contrib/ivshmem-server) is not given: no comparison")
    with tempfile.TemporaryDirectory(prefix="ivshmem-bench-") as directory:
        try:
            bench = Bench(Path(directory), servers, rounds)
            bench.run()
        except (BenchError, subprocess.SubprocessError) as error:
            sys.exit(f"bench: {error}")
    if bench.failures:
        sys.exit("our server lost something: " + "; ".join(bench.failures))


if __name__ == "__main__":
    main()

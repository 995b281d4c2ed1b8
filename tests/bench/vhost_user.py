"""Our vhost-user back-ends, timed beside QEMU's storage daemon: `python -m tests.bench.vhost_user`.

Same file on tmpfs, through the page cache, same front-end (vhost_load.c), all back-ends in turn in
each round. What is printed is the median of the rounds. A figure that misses its expectation is
marked, and is no failure: machines differ. Data that are not as they must be are one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.backends import (
    Workload,
    build,
    entropy,
    make_disk,
    ours,
    read_source,
    run_load,
    serving,
    storage_daemon,
)
from tests.bench.load import BenchError
from tests.bench.table import Table
from tests.rig.debian.apt import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from tests.bench.backends import LoadReport

    Reports: TypeAlias = dict[Workload, dict[str, list[LoadReport]]]
    """By workload, then by the name of the back-end."""

SHARED_MEMORY = "/dev/shm"
DISK_PAGES = 65536
"""Of 4 KiB each."""
SECONDS = 0.3
SOURCE = "/dev/urandom"

DAEMON = "qsd"
DAEMON_URING = "qsd, io_uring"
BARE = "bare C"

WORKLOADS = [
    Workload("4 KiB random read, depth 1", "randread", 4096, 1),
    Workload("4 KiB random write, depth 1", "randwrite", 4096, 1),
    Workload("4 KiB random read, depth 32", "randread", 4096, 32),
    Workload("4 KiB random write, depth 32", "randwrite", 4096, 32),
    Workload("1 MiB read in a row, depth 8", "read", 1 << 20, 8),
    Workload("1 MiB write in a row, depth 8", "write", 1 << 20, 8),
]
PACKED = [
    Workload("4 KiB random read, depth 1", "randread", 4096, 1, "k"),
    Workload("4 KiB random read, depth 32", "randread", 4096, 32, "k"),
]
"""The storage daemon of QEMU 7.2 has no packed rings."""
ENTROPY = [
    Workload("64 bytes, depth 1, as Linux asks", "entropy", 64, 1),
    Workload("4 KiB, depth 8", "entropy", 4096, 8),
]

EXPECTED_LATENCY_RATIO = 1.3
EXPECTED_THROUGHPUT_RATIO = 1.0


class Bench:
    """Puts the same load on several back-ends in turn, and collects their reports."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds
        self.disk = directory / "disk"
        self.load = build(directory)
        self.wrong: list[str] = []
        """What was not as it must be."""

    def run(self) -> None:
        """Measure and print everything."""
        make_disk(self.disk, DISK_PAGES)
        self.blk()
        self.rng()

    def blk(self) -> None:
        """Our disk and the storage daemon's, with both of its I/O engines that go through the page cache."""
        backends = [
            ours(self.disk),
            storage_daemon(DAEMON, self.disk, "threads"),
            storage_daemon(DAEMON_URING, self.disk, "io_uring"),
        ]
        with ExitStack() as stack:
            sockets = {}
            for number, backend in enumerate(backends):
                try:
                    socket = self.directory / f"blk{number}"
                    sockets[backend.name] = stack.enter_context(serving(backend, socket))
                except BenchError as error:
                    if backend.name == "ours":
                        raise
                    print(f"no comparison with {backend.name}: {error}")
            reports: Reports = {workload: defaultdict(list) for workload in WORKLOADS}
            packed: Reports = {workload: defaultdict(list) for workload in PACKED}
            for _ in range(self.rounds):
                for workload in WORKLOADS:
                    for name, socket in sockets.items():
                        reports[workload][name].append(self._measure(name, socket, workload))
                for workload in PACKED:
                    packed[workload]["ours"].append(self._measure("ours", sockets["ours"], workload))
        show(reports, DAEMON)
        show_briefly("blk beside the storage daemon with io_uring", reports, DAEMON_URING)
        show_briefly("blk, packed ring, which the storage daemon lacks", packed, DAEMON)

    def rng(self) -> None:
        """Our rng; a loop in C that reads the same source shows what the kernel takes for the bytes."""
        reports: Reports = {workload: defaultdict(list) for workload in ENTROPY}
        with serving(entropy(SOURCE), self.directory / "rng") as socket:
            for _ in range(self.rounds):
                for workload in ENTROPY:
                    reports[workload]["ours"].append(self._measure("ours", socket, workload))
                    reports[workload][BARE].append(read_source(self.load, SOURCE, workload.size, SECONDS))
        rates = Table(f"rng, beside reading {SOURCE} without a guest: requests", "1/s", other=BARE)
        volumes = Table("rng: bytes", "MB/s", other=BARE)
        latencies = Table("rng: latency, median", "us", other=BARE)
        cpu = Table("rng: CPU time of the back-end for a request", "us", other=BARE)
        for workload, by_name in reports.items():
            mine = {"ours": by_name["ours"]}
            rates.row(workload.name, _figures(by_name, "per_second"))
            volumes.row(workload.name, _figures(by_name, "bytes_per_second", 1e-6))
            latencies.row(workload.name, _figures(mine, "p50_us"))
            cpu.row(workload.name, _figures(mine, "cpu_us"))
        for table in (rates, volumes, latencies, cpu):
            table.print()

    def _measure(self, name: str, socket: Path, workload: Workload) -> LoadReport:
        report = run_load(self.load, socket, self.disk, workload, SECONDS)
        if report.wrong:
            self.wrong.append(f"{name}, {workload.name}: {report.wrong} requests or pages")
        return report


def show(reports: Reports, other: str) -> None:
    """Print all figures of all workloads."""
    rates = Table("blk beside QEMU's storage daemon (qsd): requests", "1/s", other=other)
    latencies = Table("blk: latency, median", "us", other=other)
    tails = Table("blk: latency, 99th percentile", "us", other=other)
    cpu = Table("blk: CPU time of the back-end for a request", "us", other=other)
    kicks = Table("blk: kicks for a hundred requests", "1", other=other)
    calls = Table("blk: calls for a hundred requests", "1", other=other)
    for workload, by_name in reports.items():
        single = workload.depth == 1
        limit, least = (EXPECTED_LATENCY_RATIO, None) if single else (None, EXPECTED_THROUGHPUT_RATIO)
        rates.row(workload.name, _figures(by_name, "per_second"), least_ratio=least, notes=_stalls(by_name))
        latencies.row(workload.name, _figures(by_name, "p50_us"), expected_ratio=limit)
        tails.row(workload.name, _figures(by_name, "p99_us"))
        cpu.row(workload.name, _figures(by_name, "cpu_us"))
        kicks.row(workload.name, _figures(by_name, "kicks", 100))
        calls.row(workload.name, _figures(by_name, "calls", 100))
    for table in (rates, latencies, tails, cpu, kicks, calls):
        table.print()


def show_briefly(title: str, reports: Reports, other: str) -> None:
    """Print throughput and CPU time of all workloads."""
    rates = Table(f"{title}: requests", "1/s", other=other)
    cpu = Table(f"{title}: CPU time of the back-end for a request", "us", other=other)
    for workload, by_name in reports.items():
        rates.row(workload.name, _figures(by_name, "per_second"))
        cpu.row(workload.name, _figures(by_name, "cpu_us"))
    rates.print()
    cpu.print()


def _figures(
    by_name: Mapping[str, Sequence[LoadReport]], name: str, factor: float = 1
) -> dict[str, list[float]]:
    return {who: [getattr(report, name) * factor for report in them] for who, them in by_name.items()}


def _stalls(by_name: Mapping[str, Sequence[LoadReport]]) -> dict[str, str]:
    counts = {who: sum(report.stalls for report in them) for who, them in by_name.items()}
    return {who: f"stalled {count} times" for who, count in counts.items() if count}


def main() -> None:
    """Measure everything; exit with 1 if data were not as they must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vhost_user", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure everything (%(default)s)")
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory(prefix="vhost-user-bench-", dir=SHARED_MEMORY) as directory,
        ExitStack() as stack,
    ):
        # Tests that run meanwhile remove what is new there and nobody has open.
        stack.callback(os.close, os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
        try:
            bench = Bench(Path(directory), rounds)
            bench.run()
        except (BenchError, SetupError, subprocess.SubprocessError) as error:
            sys.exit(f"bench: {error}")
    if bench.wrong:
        sys.exit("data were not as they must be: " + "; ".join(bench.wrong))


if __name__ == "__main__":
    main()

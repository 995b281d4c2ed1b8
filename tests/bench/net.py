"""Our network device beside QEMU's own, over the same kind of tap: `python -m tests.bench.net`.

A guest runs iperf3 to a server in a network namespace, both ways, first with our back-end and then with
QEMU's own user-space virtio-net (vhost=off), in turn. What is printed is the median of the rounds. A
figure that misses its expectation is marked, and is no failure: machines differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.bench.table import Table
from tests.rig.guest import guest as rig
from tests.rig.programs import netns
from tests.rig.programs.backend import start_backend
from tests.rig.scenarios import iperf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.rig.programs.netns import Namespace

SECONDS = 3
EXPECTED_RATIO = 0.8
QEMU = "QEMU's own"

MODEL = "virtio-net-pci,netdev=net0,romfile=,vectors=0"
"""Without MSI-X for both: QEMU 7.2 crashes with it where our back-end is used without KVM."""

NETWORKS = {"ours": ("192.0.2.1", "192.0.2.2"), QEMU: ("198.51.100.1", "198.51.100.2")}
"""The host's address and the guest's, of each."""

WAYS = {"guest to host": False, "host to guest": True}


class Bench:
    """Boots guests, and collects what TCP carries."""

    def __init__(self, directory: Path, net: Namespace) -> None:
        self.directory = directory
        self.net = net
        self._host = iperf.Host(directory, net)
        self.rates: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}
        self.cpu: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}

    async def run(self, rounds: int) -> None:
        """Measure and print everything."""
        for number, (host, _) in enumerate(NETWORKS.values()):
            self.net.add_tap(f"tap{number}")
            self.net.address(f"tap{number}", host)
        for _ in range(rounds):
            async with self._ours() as guest:
                await self._measure("ours", guest)
            async with self._qemus() as guest:
                await self._measure(QEMU, guest)
        self._print()

    @asynccontextmanager
    async def _ours(self) -> AsyncIterator[rig.Guest]:
        options = ("--tap", "tap0", "--netns", self.net.name)
        async with start_backend(self.directory, "net", *options) as backend:
            netdev = ("-netdev", "vhost-user,id=net0,chardev=backend")
            async with rig.boot(
                *backend.chardev(), *netdev, "-device", MODEL, shared=True, tools=("net",)
            ) as guest:
                self._pids = [guest.program.pid, backend.program.pid]
                yield guest

    @asynccontextmanager
    async def _qemus(self) -> AsyncIterator[rig.Guest]:
        with self.net.open_tap("tap1") as tap:
            netdev = ("-netdev", f"tap,id=net0,fd={tap.fileno()},vhost=off")
            async with rig.boot(
                *netdev, "-device", MODEL, shared=True, tools=("net",), pass_fds=[tap.fileno()]
            ) as guest:
                self._pids = [guest.program.pid]
                yield guest

    async def _measure(self, name: str, guest: rig.Guest) -> None:
        host, address = NETWORKS[name]
        await guest.sh("modprobe virtio_net && ip link set eth0 up")
        await guest.sh(f"ip address add {address}/24 dev eth0 && ping -c 1 {host}")
        for way, to_guest in WAYS.items():
            before = _cpu_seconds(self._pids)
            done = await self._host.transfer(guest, host, f"-t {SECONDS}", to_guest=to_guest)
            self.rates[way][name].append(done.megabytes_per_second)
            self.cpu[way][name].append((_cpu_seconds(self._pids) - before) / done.bytes * 1e12)

    def _print(self) -> None:
        rates = Table("TCP through a tap, one stream", "MB/s", other=QEMU)
        cpu = Table("CPU time of QEMU and back-end together, the guest's included", "us/MB", other=QEMU)
        for way in WAYS:
            rates.row(way, self.rates[way], least_ratio=EXPECTED_RATIO)
            cpu.row(way, self.cpu[way])
        rates.print()
        cpu.print()


def _cpu_seconds(pids: list[int]) -> float:
    """Return how much processor time processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def main() -> int:
    """Measure everything; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.net", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure everything (%(default)s)")
    rounds = parser.parse_args().rounds
    if reason := netns.unavailable():
        print(f"net is not measured: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="net-bench-") as directory, netns.namespace() as net:
        trio.run(Bench(Path(directory), net).run, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

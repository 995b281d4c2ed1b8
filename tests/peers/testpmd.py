"""DPDK's testpmd: cards of its drivers and back-ends, and frames forwarded between them."""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from tests.peers import counterparts
from tests.rig.debian import packages
from tests.rig.programs import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROMPT = "testpmd> "
SECONDS = 60
"""How long anything may take, on a machine that is busy."""
BURST = 32
"""Frames that `start tx_first` sends at each port."""

_PLUGINS = ("bus_vdev", "mempool_ring", "net_virtio", "net_vhost")
_MEBIBYTES = 256
_BUFFERS = 8192
_PORT = re.compile(
    r"NIC statistics for port \d+"
    r".*?RX-packets: (\d+).*?RX-bytes: +(\d+).*?RX-errors: (\d+).*?TX-packets: (\d+) +TX-errors: (\d+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Counts:
    """What a port has received and sent so far, in frames."""

    received: int
    received_bytes: int
    sent: int
    errors: int


class Testpmd:
    """A testpmd at whose prompt nobody else types. `start_testpmd()` makes one."""

    __test__ = False  # pytest takes it for a class of tests

    def __init__(self, program: process.Program, keyboard: int) -> None:
        self.program = program
        self._keyboard = keyboard

    async def ask(self, command: str) -> str:
        """Give a command; return what is printed until the next prompt."""
        before = len(self.program.output())
        os.write(self._keyboard, f"{command}\n".encode())
        return (await self.until_printed(PROMPT, after=before))[before:]

    async def until_printed(self, text: str, *, after: int = 0, count: int = 1) -> str:
        """Wait until it has printed `text` so often; return all that it printed. Fails if it ends first."""
        with trio.fail_after(SECONDS):
            while (output := self.program.output())[after:].count(text) < count:
                assert not self.program.ended, "testpmd has ended"
                await trio.sleep(0.01)
        return output

    async def counts(self) -> list[Counts]:
        """Return the counts of all ports."""
        found = _PORT.findall(await self.ask("show port stats all"))
        numbers = (map(int, each) for each in found)
        return [Counts(rx, size, tx, bad + lost) for rx, size, bad, tx, lost in numbers]

    async def until_received(self, frames: int) -> None:
        """Wait until each port has received so many frames more."""
        wanted = [each.received + frames for each in await self.counts()]
        with trio.fail_after(SECONDS):
            while any(each.received < least for each, least in zip(await self.counts(), wanted, strict=True)):
                pass

    async def quit(self) -> None:
        """Have it end, and in order."""
        os.write(self._keyboard, b"quit\n")
        with trio.fail_after(SECONDS):
            assert await self.program.wait() == 0


@asynccontextmanager
async def start_testpmd(
    directory: Path, *devices: str, options: tuple[str, ...] = (), name: str = "testpmd"
) -> AsyncIterator[Testpmd]:
    """Run it with these devices (--vdev) and `options`, until the block ends; it forwards nothing yet.

    It looks for frames all the time: two threads of it keep as many CPUs busy.
    """
    runtime = directory / f"{name}-run"
    runtime.mkdir(exist_ok=True)
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    with OwnedFd(ours), OwnedFd(theirs) as keyboard:
        running = process.start(
            _command(keyboard.fileno(), name, devices, options),
            pass_fds=[keyboard.fileno()],
            env={"RUNTIME_DIRECTORY": str(runtime)},
        )
        async with running as program:
            keyboard.close()
            testpmd = Testpmd(program, ours)
            await testpmd.until_printed(PROMPT)
            yield testpmd


def _command(keyboard: int, name: str, devices: tuple[str, ...], options: tuple[str, ...]) -> list[str]:
    root = counterparts.dpdk()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    plugins = [path.name for each in _PLUGINS for path in libraries.glob(f"librte_{each}.so.*")]
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return [
        *("sh", "-c", f'exec "$@" </dev/fd/{keyboard}', "sh", "stdbuf", "-oL"),
        *(str(packages.program(root, "dpdk-testpmd")), "--no-huge", "-m", str(_MEBIBYTES), "--no-pci"),
        *("--force-max-simd-bitwidth=512", "--log-level=pmd.net.virtio.init:debug"),
        *("--lcores", f"(0,1)@({cpus})", "--file-prefix", name),
        *(option for plugin in plugins for option in ("-d", plugin)),
        *(f"--vdev={device}" for device in devices),
        *("--", "-i", f"--total-num-mbufs={_BUFFERS}", *options),
    ]

"""iperf3 on the host, from the guest's own package, and what it measures from a guest to there."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from tests.rig import process, tool_archive, tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.guest import Shell
    from tests.rig.netns import Namespace

_START_SECONDS = 60
_LISTENS = "Server listening"


@dataclass(frozen=True)
class Transfer:
    """What one side sent to the other."""

    bytes: int
    seconds: float

    @property
    def megabytes_per_second(self) -> float:
        """10 ** 6 bytes a second."""
        return self.bytes / self.seconds / 1e6


@asynccontextmanager
async def server(directory: Path, net: Namespace) -> AsyncIterator[None]:
    """Run iperf3's server in a network namespace, for as long as the block runs."""
    argv = net.command([*_program(directory), "-s", "--forceflush"])
    async with process.start(argv) as program:
        with trio.fail_after(_START_SECONDS):
            while _LISTENS not in program.output():  # noqa: ASYNC110 -- another process prints it
                await trio.sleep(0.01)
        yield


async def transfer(
    guest: Shell, host: str, *, to_guest: bool = False, streams: int = 1, seconds: float = 2
) -> Transfer:
    """Have TCP carry as much as it can between guest and host, one way, for a while."""
    way = " -R" if to_guest else ""
    output = await guest.sh(f"iperf3 -c {host} -J -t {seconds:g} -P {streams}{way}")
    received: dict[str, Any] = json.loads(output)["end"]["sum_received"]
    return Transfer(received["bytes"], received["seconds"])


def _program(directory: Path) -> list[str]:
    """Return the command that runs iperf3 here, unpacked below `directory`."""
    files = tool_archive.files(tools.root(), ["net"])
    for name, content in files.items():
        path = directory / "iperf3" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    root = directory / "iperf3"
    (loader,) = root.glob("lib64/ld-*")
    return [str(loader), "--library-path", str(root / "lib/x86_64-linux-gnu"), str(root / "bin/iperf3")]

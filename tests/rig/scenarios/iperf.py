"""iperf3 on the host, from the guest's own package, and its figures from a guest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.rig.guest import tool_archive, tools
from tests.rig.programs import process
from tests.rig.programs.backend import until_printed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.guest.guest import Shell
    from tests.rig.programs.netns import Namespace

_SECONDS = 600
_LISTENS = "Server listening"
_ONE_CLIENT = "--server --one-off --forceflush"


@dataclass(frozen=True)
class Transfer:
    """What one side sent to the other."""

    bytes: int
    seconds: float

    @property
    def megabytes_per_second(self) -> float:
        """10 ** 6 bytes a second."""
        return self.bytes / self.seconds / 1e6


class Host:
    """iperf3 on the host, in a network namespace.

    Each transfer has a server of its own: one that has not quite finished with a client refuses the next.
    """

    def __init__(self, directory: Path, net: Namespace) -> None:
        """Unpack iperf3 below `directory`."""
        self._command = net.command(_program(directory))

    async def transfer(
        self, guest: Shell, address: str, amount: str, *, to_guest: bool = False, streams: int = 1
    ) -> Transfer:
        """Have TCP carry as much as it can between `guest` and our `address`, one way.

        `amount` is iperf3's option for when to end: "-n 16M", which takes as long as it takes, or "-t 3".
        """
        async with process.start([*self._command, *_ONE_CLIENT.split()]) as server:
            await until_printed(server, _LISTENS)
            way = " -R" if to_guest else ""
            command = f"iperf3 -c {address} -J {amount} -P {streams}{way}"
            received = json.loads(await guest.sh(command, seconds=_SECONDS))["end"]["sum_received"]
            with trio.fail_after(_SECONDS):
                await server.wait()
        return Transfer(received["bytes"], received["seconds"])


def serve(options: str = "") -> str:
    """Return the shell command with which a guest begins to serve one client, and waits until it listens."""
    server = f"iperf3 {_ONE_CLIENT} {options}".rstrip()
    return f"{server} >/tmp/iperf3 2>&1 & until grep -qs '{_LISTENS}' /tmp/iperf3; do usleep 10000; done"


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

"""`vhost-user` as its users run it to its end, and a device of their own for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.rig.programs import forked

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SECONDS = 60

OWN_DEVICE = '''
from vhost_user import DeviceId, VirtioDevice


class Hello(VirtioDevice):
    """Says hello."""

    device_id = DeviceId.CONSOLE
    name = "hello"

    async def run_queue(self, queue):
        async for chain in queue:
            chain.writable.write(b"hello")
            chain.complete()
'''


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run vhost-user to its end."""
    return forked.run("vhost-user", *argv, cwd=cwd)


def refusal(*argv: str, code: int = 1) -> str:
    """Return the one line with which vhost-user refuses a command line."""
    result = run(*argv)
    assert result.returncode == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line

"""README.md is true: its device works, and its peer, and its commands are those of the programs."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING, Any

import trio

import ivshmem_server
from tests.docs.documents import PROJECT, blocks
from tests.rig.debian.platforms import PLATFORMS
from tests.rig.programs.server import start_server
from vhost_user.testing import driving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

README = (PROJECT / "README.md").read_text()
SECONDS = 60


async def test_device() -> None:
    names: dict[str, Any] = {}
    exec(blocks(README, "python")[1], names)  # noqa: S102 -- it is ours
    async with driving(names["Rng"]()) as front:
        queue = await front.start_queue()
        first, second = await queue.request(32), await queue.request(32)
        assert (len(first), len(second)) == (32, 32)
        assert first != second


async def test_peer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer of the README finds another one, rings it, and is rung by it."""
    mains: list[Any] = []
    monkeypatch.setattr(trio, "run", mains.append)
    async with start_server(directory, "-l", "1M", "-n", "2", memfd=True) as server:
        exec(blocks(README, "python")[0].replace("/tmp/sock", str(server.socket)), {})  # noqa: S102
        (main,) = mains
        printed = io.StringIO()
        async with ivshmem_server.connect(server.socket, vectors=2) as other, trio.open_nursery() as nursery:
            with contextlib.redirect_stdout(printed):
                nursery.start_soon(main)
                with trio.fail_after(SECONDS):
                    assert await other.wait(1) == 1
                    assert bytes(other.memory[:5]) == b"hello"
                    (number,) = other.peers
                    other.ring(number, 0)
                    while "rung" not in printed.getvalue():  # noqa: ASYNC110 -- what is awaited is a print
                        await trio.sleep(0.01)
    assert printed.getvalue().splitlines() == [
        f"I am {number} and there are {{{other.id}: 2}}",
        "rung 1 times",
    ]


def test_platforms() -> None:
    """The table says of each platform what the tests' own table says."""
    rows = re.findall(r"^\| `(debian\S+)` \| (\S+) \| (\S+) \| .* \| (yes|no) \|$", README, re.MULTILINE)
    assert rows == [
        (name, version(platform.qemu), version(platform.linux), "yes" if platform.always else "no")
        for name, platform in PLATFORMS.items()
    ]


def version(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))

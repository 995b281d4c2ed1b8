"""docs/migration.md is true: its commands are run, and a real guest migrates by them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_program

pytestmark = [pytest.mark.guest, pytest.mark.slow]

GUIDE = (Path(__file__).parents[2] / "docs/migration.md").read_text()
SECONDS = 60


def blocks(language: str) -> list[str]:
    """Return the guide's code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.extended
async def test_the_guides_commands(directory: Path) -> None:
    def here(text: str) -> str:
        return text.replace("\\\n", "").replace("/run/", f"{directory}/").replace("/srv/", f"{directory}/")

    (directory / "disk.img").write_bytes(b"what is on the disk".ljust(1 << 20, b"\0"))
    old_disk, old_qemu, new_disk, new_qemu = (shlex.split(here(block)) for block in blocks("sh"))
    come, go = (json.loads(here(block)) for block in blocks("json"))
    async with AsyncExitStack() as stack:
        for name, argv in (("old", old_disk), ("new", new_disk)):
            program = str(Path(sys.executable).with_name(argv[0]))
            await stack.enter_async_context(start_program(directory, [program, *argv[1:]], name))
        assert old_qemu[:2] == new_qemu[:2] == ["qemu-system-x86_64", "..."]
        assert new_qemu[-2:] == ["-incoming", "defer"]
        cpus = ("-smp", "2")
        old = await stack.enter_async_context(rig.boot(*old_qemu[2:], *cpus, shared=True))
        new = await stack.enter_async_context(rig.await_migration(*new_qemu[2:-2], *cpus))
        await old.sh("modprobe virtio_blk")

        await new.qmp.execute(come["execute"], **come["arguments"])
        await old.qmp.execute(go["execute"], **go["arguments"])
        with trio.fail_after(SECONDS):
            await new.qmp.wait_event("RESUME", seconds=SECONDS)
            while (await old.qmp.execute("query-migrate"))["status"] != "completed":
                pass
        new.arrived(old)
        await old.kill()
        read = "echo 3 >/proc/sys/vm/drop_caches; head -c 19 /dev/vda"
        assert await new.sh(read) == "what is on the disk"

"""Linux migrates between QEMUs, and its disk between our back-ends, under load."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests.guest.migrating import (
    BLOCK,
    BLOCKS,
    LOAD,
    SECONDS,
    WORKERS,
    LoadError,
    begin,
    expected_disk,
    migrate,
    passes,
    start_host,
    stop,
)
from tests.guest.test_vhost_user import content

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.programs.backend import RunningBackend

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture
def image(directory: Path) -> Path:
    """The disk, which both back-ends of a migration have open."""
    path = directory / "image"
    path.write_bytes(bytes(WORKERS * BLOCKS * BLOCK))
    return path


def logged(backend: RunningBackend) -> list[bool]:
    """Return whether each SET_FEATURES of the front-end had the dirty log on."""
    return ["LOG_ALL" in request for request in backend.requests() if request.startswith("SET_FEATURES")]


async def until_not_logged(backend: RunningBackend) -> None:
    """Wait until the front-end has the dirty log off: QEMU tells of a failure before it cleans up."""
    with trio.fail_after(SECONDS):
        while logged(backend)[-1]:  # noqa: ASYNC110 -- another process prints it
            await trio.sleep(0.01)


@pytest.mark.parametrize(("packed", "moves"), [pytest.param("off", 4, marks=pytest.mark.extended), ("on", 2)])
async def test_guest_migrates_there_and_back(image: Path, packed: str, moves: int) -> None:
    properties = f",packed={packed}"
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(start_host(image, 0, properties=properties))
        await here.guest.sh("modprobe virtio_blk")
        load = await here.guest.start(LOAD)
        for number in range(1, moves + 1):
            there = await stack.enter_async_context(start_host(image, number, properties=properties))
            await migrate(here, there, load)
            await passes(load)
            assert logged(here.backend)[-1]
            assert not logged(there.backend)[-1]
            here = there
        assert expected_disk(await stop(load)) == content(image)
        assert not re.search("error|timeout", await here.guest.sh("dmesg | grep vda || true"))


@pytest.mark.extended
async def test_migration_that_fails_leaves_the_guest_where_it_is(image: Path) -> None:
    async with start_host(image, 0) as here, start_host(image, 3) as there:
        await here.guest.sh("modprobe virtio_blk")
        load = await here.guest.start(LOAD)
        for number, end in enumerate(("cancelled", "failed"), 1):
            async with start_host(image, number) as never, begin(here, never, load):
                assert logged(here.backend)[-1]
                if end == "cancelled":
                    await here.guest.qmp.execute("migrate_cancel")
                else:
                    await never.guest.kill()
            await here.until_migration_is(end)
            await until_not_logged(here.backend)
            await passes(load)

        await migrate(here, there, load)
        await passes(load)
        assert expected_disk(await stop(load)) == content(image)


@pytest.mark.extended
async def test_back_end_without_a_dirty_log_is_found_out(image: Path) -> None:
    device = "tests.guest.unlogged:Unlogged"
    async with (
        start_host(image, 0, device=device) as here,
        start_host(image, 1, device=device) as there,
    ):
        await here.guest.sh("modprobe virtio_blk")
        load = await here.guest.start(LOAD)
        await migrate(here, there, load)
        with pytest.raises(LoadError, match=r"block \d+ has version \d+, not \d+"):
            await passes(load)

"""docs/your-own-device.md is true: its devices do what it says of them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import vhost_user
from tests.docs.documents import PROJECT, blocks, read
from vhost_user.frontend import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = read("your-own-device.md")
SECONDS = 60


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    """What the guide's code defines, beside the whole program that it begins with."""
    names: dict[str, Any] = {"os": os, "struct": struct, "trio": trio, "vhost_user": vhost_user}
    for block in blocks(GUIDE, "python")[1:]:
        exec(compile(block, "your-own-device.md", "exec"), names)  # noqa: S102 -- it is ours
    return names


def test_it_begins_with_the_example_which_has_forty_lines() -> None:
    example = (PROJECT / "examples/scripted_rng.py").read_text()
    assert blocks(GUIDE, "python")[0] == example
    assert len(example.splitlines()) <= 41


async def test_upper(guide: dict[str, Any]) -> None:
    async with driving(guide["Upper"]()) as front:
        assert front.num_queues == 2
        for index in range(2):
            queue = await front.start_queue(index)
            assert await queue.request(b"hel", b"lo", 3, 10) == b"HELLO"


async def test_divider(guide: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async with driving(guide["Divider"]()) as front:
        queue = await front.start_queue()
        for given, answer in {(84, 2): b"\0\x2a\0\0\0", (84, 0): b"\1"}.items():
            assert await queue.request(guide["HEADER"].pack(*given), 5) == answer
        for _ in range(3):
            assert await queue.request(b"short", 5) == b"\1"
    assert caplog.messages == ["queue 0: a request is refused: 5 bytes to read, where 8 are due"]


async def test_clerk(guide: dict[str, Any], autojump_clock: trio.testing.MockClock) -> None:
    async with driving(guide["Clerk"]()) as front:
        queue = await front.start_queue()
        slow, quick = queue.submit(b"0.5", 20), queue.submit(b"0.1", 20)
        assert await queue.wait(quick) == b"after 0.1"
        assert not slow.is_done
        assert await queue.wait(slow) == b"after 0.5"


async def test_file_reader(guide: dict[str, Any], directory: Path) -> None:
    (directory / "text").write_bytes(b"first second")
    with guide["FileReader"](directory / "text") as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            assert [await queue.request(2, 4), await queue.request(100)] == [b"first ", b"second"]


async def test_bell_puts_back_what_it_waits_with(guide: dict[str, Any]) -> None:
    device = guide["Bell"]()
    async with driving(device) as front:
        queue = await front.start_queue()
        request = queue.submit(10)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(SECONDS):
            assert await front.stop_queue(queue) == 0  # where it began
        device.rung.set()
        await front.resume_queue(queue)
        assert await queue.wait(request) == b"ding"


async def test_lamp(guide: dict[str, Any]) -> None:
    lamp, other = guide["Lamp"](), guide["Lamp"]()
    async with driving(lamp) as front:
        queue = await front.start_queue()  # a suspended device tells nothing
        assert lamp.fades
        await front.set_config(0, b"\x0a")
        assert (lamp.brightness, await front.get_config(2)) == (10, b"\x0a\0")
        with pytest.raises(BackendError, match="refuses SET_CONFIG"):
            await front.set_config(0, b"\x65")
        lamp.turn(20)
        with trio.fail_after(SECONDS):
            await front.config_changed()
        await front.stop_queue(queue)
        state = await front.save_state()
        await front.reset()
        assert lamp.brightness == 50
    async with driving(other, 0) as front:
        assert not other.fades
        await front.load_state(state)
        assert other.brightness == 20


class Careless(vhost_user.VirtioDevice):
    """Completes chains twice."""

    device_id = vhost_user.DeviceId.CONSOLE

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        async for chain in queue:
            chain.complete()
            chain.complete()


async def test_chain_completed_twice_is_named() -> None:
    message = r"<Chain 0: 5 readable, 0 writable> was completed before"
    with pytest.raises(RuntimeError, match=message):  # noqa: PT012 -- the block is cancelled
        async with driving(Careless()) as front:
            await (await front.start_queue()).request(b"hello")
            await trio.sleep_forever()

"""Declared headers: requests that are none, which a device does not see, and chains that break a queue."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
from construct import Byte, Bytes, Const, GreedyBytes, Int16ul, Struct
from hypothesis import given
from hypothesis import strategies as st

import vhost_user
from protocol.virtio.features import Feature
from vhost_user.buffers import sizeof
from vhost_user.frontend import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.buffers import Layout

PAIR = struct.Struct("<II")
MAGIC = Struct("magic" / Const(b"me"), "number" / Int16ul)


class Adder(vhost_user.VirtioDevice):
    """Adds two numbers, and what follows them to the answer. Checks nothing by itself."""

    device_id = vhost_user.DeviceId(63)
    num_queues = 2

    def __init__(self, header: Layout = PAIR, *, batches: bool = False, refusal: Any = b"no") -> None:
        self.header = header
        self.batches = batches
        self.refusal = refusal

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        requests = queue.requests(self.header, room=4, refusal=self.refusal)
        if self.batches:
            async for batch in requests.batches(3):
                assert 1 <= len(batch) <= 3
                for chain, header in batch:
                    self.answer(chain, header)
        else:
            async for chain, header in requests:
                self.answer(chain, header)

    def answer(self, chain: vhost_user.Chain, header: Any) -> None:
        total = sum(header) if isinstance(header, tuple) else header.number
        chain.writable.write(struct.pack("<I", total & 0xFFFF_FFFF) + chain.readable.read())
        chain.complete()


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("plus", [Feature.NONE, Feature.RING_PACKED])
async def test_device_sees_requests_only(
    batches: bool, plus: Feature, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(Adder(batches=batches), plus=plus) as front:
        queue = await front.start_queue()
        for _ in range(3):
            assert await queue.request(PAIR.pack(2, 3) + b"rest", 16) == b"\5\0\0\0rest"
            assert await queue.request(PAIR.pack(2, 3)[:3], PAIR.pack(2, 3)[3:], 4) == b"\5\0\0\0"
            assert await queue.request(b"short", 16) == b"no"
            assert await queue.request(16) == b"no"
            assert await queue.request(PAIR.pack(2, 3), 3) == b"no"
            assert await queue.request(PAIR.pack(2, 3), 1) == b"n"
            assert await queue.request(PAIR.pack(2, 3)) == b""
    refused = "queue 0: a request is refused: "
    assert caplog.messages == [
        f"{refused}5 bytes to read, where 8 are due",
        f"{refused}0 bytes to read, where 8 are due",
        f"{refused}room for 3 bytes, where 4 are due",
        f"{refused}room for 1 byte, where 4 are due",
        f"{refused}room for 0 bytes, where 4 are due",
    ]


async def test_batch_with_requests_of_both_kinds() -> None:
    async with driving(Adder(batches=True)) as front:
        queue = await front.start_queue()
        given = [PAIR.pack(number, 1) if number % 3 else b"short" for number in range(9)]
        requests = [queue.submit(data, 4) for data in given]
        answers = [await queue.wait(request) for request in requests]
    assert answers == [struct.pack("<I", number + 1) if number % 3 else b"no" for number in range(9)]


@pytest.mark.parametrize("wrong", [b"me", b"me\1", b"it\1\0"])
async def test_construct_that_does_not_hold(wrong: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Adder(MAGIC)) as front:
        queue = await front.start_queue()
        assert await queue.request(b"me\2\1", 4) == b"\2\1\0\0"
        assert await queue.request(wrong, 4) == b"no"
    assert len(caplog.messages) == 1


async def test_refusal_with_the_status_at_the_end() -> None:
    def refuse(chain: vhost_user.Chain) -> bytes:
        return bytes(max(chain.writable.length - 1, 0)) + b"\1"

    async with driving(Adder(refusal=refuse)) as front:
        queue = await front.start_queue()
        assert await queue.request(5) == b"\0\0\0\0\1"
        assert await queue.request(b"short") == b""


@pytest.mark.parametrize(
    "layout", [GreedyBytes, Struct("length" / Byte, "data" / Bytes(lambda this: this.length))]
)
def test_layout_without_a_size(layout: Layout) -> None:
    with pytest.raises(TypeError, match="has no size of its own; read its length first"):
        sizeof(layout)


async def test_guest_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Adder(struct.Struct("100s"))) as front:
        queue = await front.start_queue()
        for size in range(1, 100):
            assert await queue.request(bytes(size), 4) == b"no"
    assert len(caplog.messages) <= 20


@given(data=st.binary(max_size=12), room=st.integers(0, 6))
def test_any_chain_is_a_request_or_is_refused(data: bytes, room: int) -> None:
    async def check() -> None:
        async with driving(Adder()) as front:
            queue = await front.start_queue()
            answer = (
                await queue.request(*([data] if data else []), *([room] if room else []))
                if data or room
                else b""
            )
            if len(data) >= PAIR.size and room >= 4:
                total = sum(PAIR.unpack_from(data)) & 0xFFFF_FFFF
                assert answer == (struct.pack("<I", total) + data[PAIR.size :])[:room]
            else:
                assert answer == b"no"[:room]

    trio.run(check)


class Reader(vhost_user.VirtioDevice):
    """Reads headers as they come, in a task for each or not."""

    device_id = vhost_user.DeviceId(63)
    num_queues = 2

    def __init__(self, *, tasks: bool, also: Callable[[], None] = lambda: None) -> None:
        self.tasks = tasks
        self.also = also

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        async with trio.open_nursery() as nursery:
            async for chain in queue:
                if self.tasks:
                    nursery.start_soon(self.answer, chain)
                else:
                    await self.answer(chain)

    async def answer(self, chain: vhost_user.Chain) -> None:
        try:
            chain.writable.write(struct.pack("<I", sum(chain.readable.unpack(PAIR))))
        except vhost_user.ChainError:
            self.also()
            raise
        chain.complete()


@pytest.mark.parametrize("tasks", [False, True])
async def test_chain_error_breaks_its_queue_alone(tasks: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Reader(tasks=tasks)) as front:
        bad, good = await front.start_queue(0), await front.start_queue(1)
        assert await bad.request(PAIR.pack(2, 3), 4) == b"\5\0\0\0"
        with pytest.raises(BackendError, match="queue 0 is broken"):
            await bad.request(b"short", 4)
        assert await good.request(PAIR.pack(2, 3), 4) == b"\5\0\0\0"
        await front.stop_queue(bad)
    assert "queue 0 is broken and stopped: 5 bytes to read, where 8 are due" in caplog.messages
    assert "Traceback" not in caplog.text


async def test_mistake_of_the_device_beside_a_chain_error_ends_the_connection() -> None:
    def mistake() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the block is cancelled
        async with driving(Reader(tasks=True, also=mistake)) as front:
            queue = await front.start_queue()
            queue.submit(b"short", 4)
            await trio.sleep_forever()

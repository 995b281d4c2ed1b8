"""Virtqueues: a device's task on a real ring, with a driver on the other side of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.vhost_user.queue.bench import SECONDS, SIZE, Bench, finish, publisher, serve
from tests.vhost_user.ring.rig import Rig, fill
from vhost_user.queue import virtqueue

if TYPE_CHECKING:
    from vhost_user import Chain


async def test_chains_come_in_their_order_and_go_back_done(bench: Bench) -> None:
    async with publisher(bench.queue) as nursery:
        nursery.start_soon(serve, bench.queue)
        for _ in range(20):
            tokens = bench.submit(5)
            await wait_all_tasks_blocked()
            assert bench.rig.collect() == tokens


async def test_queue_is_looked_at_once_without_a_kick(bench: Bench) -> None:
    tokens = [bench.rig.add([4], [8]).token]
    bench.rig.driver.publish()
    async with publisher(bench.queue) as nursery:
        nursery.start_soon(serve, bench.queue)
        await wait_all_tasks_blocked()
        assert bench.rig.collect() == tokens


async def test_one_notification_for_a_batch(bench: Bench) -> None:
    bench.submit(10)
    async with publisher(bench.queue) as nursery:

        async def serve_batches() -> None:
            async for batch in bench.queue.batches():
                assert len(batch) == 10
                for chain in batch:
                    finish(chain)
                    assert not bench.rig.collect()

        nursery.start_soon(serve_batches)
        await wait_all_tasks_blocked()
        assert len(bench.rig.collect()) == 10
        assert len(bench.owner.publications) == 1


async def test_batches_are_no_larger_than_asked_for(bench: Bench) -> None:
    bench.submit(10)
    sizes = []
    async with publisher(bench.queue) as nursery:

        async def serve_batches() -> None:
            async for batch in bench.queue.batches(limit=4):
                sizes.append(len(batch))
                for chain in batch:
                    finish(chain)

        nursery.start_soon(serve_batches)
        await wait_all_tasks_blocked()
    assert sizes == [4, 4, 2]


async def test_flush_publishes_in_the_middle_of_a_batch(bench: Bench) -> None:
    first, *_ = bench.submit(3)
    async with publisher(bench.queue):
        batch = await anext(bench.queue.batches())
        finish(batch[0])
        assert not bench.rig.collect()
        bench.queue.flush()
        assert bench.rig.collect() == [first]


async def test_other_tasks_publish_at_once(bench: Bench) -> None:
    tokens = bench.submit(3)
    async with publisher(bench.queue) as nursery:
        batch = await anext(bench.queue.batches())

        async def complete(chain: Chain) -> None:
            finish(chain)

        nursery.start_soon(complete, batch[1])
        await wait_all_tasks_blocked()
        assert bench.rig.collect() == [tokens[1]]
        assert bench.queue.outstanding == 2


async def test_chains_go_back_while_the_next_one_waits_for_something(bench: Bench) -> None:
    """Taken together, but one that is slow does not hold up those that were completed before it."""
    tokens = bench.submit(3)
    never = trio.Event()
    async with publisher(bench.queue) as nursery:

        async def serve_slowly() -> None:
            async for chain in bench.queue:
                if chain.number == 2:
                    await never.wait()
                finish(chain)

        nursery.start_soon(serve_slowly)
        await wait_all_tasks_blocked()
        assert bench.rig.collect() == tokens[:2]


async def test_one_notification_for_chains_completed_together_one_by_one(bench: Bench) -> None:
    bench.submit(10)
    async with publisher(bench.queue) as nursery:
        nursery.start_soon(serve, bench.queue)
        await wait_all_tasks_blocked()
    assert len(bench.rig.collect()) == 10
    assert len(bench.owner.publications) == 1


async def test_chains_are_completed_in_any_order(bench: Bench) -> None:
    tokens = bench.submit(3)
    async with publisher(bench.queue):
        batch = await anext(bench.queue.batches())
        for chain in reversed(batch):
            finish(chain)
        bench.queue.flush()
        assert bench.rig.collect() == tokens[::-1]


async def test_chain_is_completed_once(bench: Bench) -> None:
    bench.submit()
    chain = await anext(bench.queue)
    finish(chain)
    with pytest.raises(RuntimeError, match="4 readable, 8 writable> was completed before"):
        chain.complete()


async def test_chain_holds_no_more_than_it_has_room_for(bench: Bench) -> None:
    bench.submit()
    chain = await anext(bench.queue)
    with pytest.raises(ValueError, match="9 bytes are not within the 8"):
        chain.complete(9)
    assert bench.queue.outstanding == 1


async def test_used_length_is_what_was_written(bench: Bench) -> None:
    bench.submit()
    chain = await anext(bench.queue)
    chain.writable.write(b"abc")
    chain.complete()
    ((_, written),) = bench.rig.driver.used()
    assert written == 3


async def test_driver_without_kicks_is_looked_at_again_and_again() -> None:
    bench = Bench(Rig("split", SIZE), polled=True)
    with trio.fail_after(SECONDS):
        async with publisher(bench.queue) as nursery:
            nursery.start_soon(serve, bench.queue)
            for _ in range(3):
                tokens = bench.submit(2)
                taken: list[int] = []
                while len(taken) < 2:
                    await trio.lowlevel.checkpoint()
                    taken += bench.rig.collect()
                assert taken == tokens
    bench.close()


async def test_busy_driver_does_not_starve_other_tasks(bench: Bench) -> None:
    bench.submit(SIZE // 2)
    turns = 0
    async with publisher(bench.queue) as nursery:

        async def serve_without_end() -> None:
            batches = bench.queue.batches()
            for _ in range(10_000):
                for chain in await anext(batches):
                    finish(chain)
                bench.queue.flush()
                bench.rig.collect()
                bench.submit(SIZE // 2)
            raise AssertionError("nobody else had a turn")

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(serve_without_end)
        nursery.start_soon(other)
        while turns < 10:
            await trio.lowlevel.checkpoint()


async def test_driver_is_asked_not_to_kick_while_we_work(bench: Bench) -> None:
    bench.submit()
    async with publisher(bench.queue) as nursery:
        chain = await anext(bench.queue)
        bench.rig.add([4], [8])
        assert not bench.rig.driver.publish()
        finish(chain)
        nursery.start_soon(serve, bench.queue)
        await wait_all_tasks_blocked()
        bench.rig.add([4], [8])
        assert bench.rig.driver.publish()


async def test_rule_17_driver_that_kicks_an_empty_ring_has_memory_of_its_own(bench: Bench) -> None:
    async with publisher(bench.queue) as nursery:
        nursery.start_soon(serve, bench.queue)
        assert bench.owner.kick is not None
        bench.owner.kick.signal()
        await wait_all_tasks_blocked()
        assert bench.owner.unshared == 0  # QEMU does that when it starts a ring
        bench.owner.kick.signal()
        await wait_all_tasks_blocked()
        assert bench.owner.unshared == 1


async def test_long_lived_chain_does_not_make_the_queue_remember_the_others(bench: Bench) -> None:
    bench.submit(2)
    held = await anext(bench.queue)
    finish(done := await anext(bench.queue))
    bench.queue.flush()
    assert bench.queue.outstanding == 1
    assert held.readable.buffers
    assert done.readable.buffers == done.writable.buffers == []
    bench.queue.stop()
    assert bench.queue.take_back() == [held]
    assert held.readable.buffers == held.writable.buffers == []


async def test_completed_chain_that_waits_for_its_turn_holds_no_memory(
    ordered_bench: Bench,
) -> None:
    ordered_bench.submit(2)
    held, done = await anext(ordered_bench.queue.batches())
    buffers = done.writable
    finish(done)
    ordered_bench.queue.flush()
    assert buffers.buffers == done.readable.buffers == []
    assert held.readable.buffers
    finish(held)
    ordered_bench.queue.flush()
    assert len(ordered_bench.rig.collect()) == 2


@pytest.mark.parametrize("kind", ["one by one", "batches"])
async def test_slow_device_lets_others_run_by_time_and_not_by_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Requests of a millisecond each, all there at once: others run after each 5 ms."""
    now = time.monotonic()
    monkeypatch.setattr(virtqueue, "monotonic", lambda: now)
    served = 0
    most = 0

    async def serve_slowly() -> None:
        nonlocal now, served
        while served < SIZE // 2:
            chains = [await anext(bench.queue)] if kind == "one by one" else await bench.queue.next_batch(1)
            for chain in chains:
                now += 0.001
                served += 1
                finish(chain)

    async def other() -> None:
        nonlocal most
        last = served
        while True:
            await trio.lowlevel.checkpoint()
            most, last = max(most, served - last), served

    async with publisher(bench.queue) as nursery:
        bench.submit(SIZE // 2)
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        await serve_slowly()
    # trio runs the tasks that are ready in any order: two turns may follow each other.
    assert 1 <= most <= 2 * (1000 * virtqueue.TURN_SECONDS)


async def test_chains_are_taken_into_stock_without_waiting(bench: Bench) -> None:
    queue = bench.queue
    assert queue.take_now() == []
    tokens = bench.submit(6)
    stock = [*queue.take_now(4), *queue.take_now(4)]
    assert [chain.number for chain in stock] == list(range(6))
    assert queue.take_now() == []
    queue.complete_together([(chain, fill(chain)) for chain in stock[:5]])
    assert bench.rig.collect() == []
    queue.flush()
    assert bench.rig.collect() == tokens[:5]
    assert len(bench.owner.publications) == 1
    assert queue.take_back() == []
    assert len(bench.ring.pop(64)) == 1


async def test_stock_is_waited_for_and_the_wait_ends_with_the_queue(bench: Bench) -> None:
    queue = bench.queue
    took = []

    async def stock_up() -> None:
        while await queue.available():
            took.append(len(queue.take_now()))
        took.append(-1)

    async with publisher(queue) as nursery:
        nursery.start_soon(stock_up)
        for count in (1, 3, 2):
            await wait_all_tasks_blocked()
            bench.submit(count)
        await wait_all_tasks_blocked()
        assert took == [1, 3, 2]
        queue.stop()
        await wait_all_tasks_blocked()
        assert took == [1, 3, 2, -1]
        assert queue.take_now() == []


async def test_stock_of_a_broken_ring_is_empty(split_bench: Bench) -> None:
    split_bench.submit()
    split_bench.rig.wind(40_000)
    assert split_bench.queue.take_now() == []
    assert split_bench.queue.broken
    assert len(split_bench.owner.reasons) == 1
    assert not await split_bench.queue.available()

"""How a virtqueue ends: stopped, drained, broken, and what the next queue gets."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.io import EventFd
from tests.vhost_user.queue.bench import SIZE, Bench, finish, publisher, serve
from tests.vhost_user.ring.rig import work


async def test_stop_ends_the_iteration_after_the_chain_in_hand(bench: Bench) -> None:
    tokens = bench.submit(5)
    served = []
    async with publisher(bench.queue):
        async for chain in bench.queue:
            finish(chain)
            served.append(chain.number)
            if chain.number == 1:
                bench.queue.stop()
        await bench.queue.drained()
    assert bench.queue.take_back() == []
    assert served == [0, 1]
    assert bench.rig.collect() == tokens[:2]


async def test_chains_that_were_never_handed_out_are_for_the_next_queue(bench: Bench) -> None:
    tokens = bench.submit(5)
    chain = await anext(bench.queue)
    finish(chain)
    bench.queue.stop()
    bench.queue.take_back()
    ring = bench.rig.start(bench.ring.base)
    ring.push([work(chain) for chain in ring.pop(10)])
    assert bench.rig.collect() == tokens


async def test_stop_wakes_a_queue_that_waits(bench: Bench) -> None:
    async with publisher(bench.queue) as nursery:
        served = trio.Event()

        async def serve_to_the_end() -> None:
            await serve(bench.queue)
            served.set()

        nursery.start_soon(serve_to_the_end)
        await wait_all_tasks_blocked()
        bench.queue.stop()
        await served.wait()


async def test_stopped_queue_is_drained_once_all_chains_are_complete(bench: Bench) -> None:
    tokens = bench.submit(2)
    async with publisher(bench.queue) as nursery:
        batch = await anext(bench.queue.batches())
        bench.queue.stop()
        drained = trio.Event()

        async def wait() -> None:
            await bench.queue.drained()
            drained.set()

        nursery.start_soon(wait)
        for chain in batch:
            await wait_all_tasks_blocked()
            assert not drained.is_set()
            finish(chain)
        bench.queue.flush()
        await drained.wait()
    assert bench.rig.collect() == tokens


async def test_chain_that_is_put_back_is_for_the_next_queue(bench: Bench) -> None:
    tokens = bench.submit(3)
    async with publisher(bench.queue):
        finish(await anext(bench.queue))
        chain = await anext(bench.queue)
        bench.queue.stop()
        chain.put_back()
        await bench.queue.drained()
    assert bench.queue.take_back() == []
    ring = bench.rig.start(bench.ring.base)
    ring.push([work(chain) for chain in ring.pop(10)])
    assert bench.rig.collect() == tokens


async def test_chain_that_others_overtook_cannot_go_back(bench: Bench) -> None:
    bench.submit(3)
    first, second, third = await anext(bench.queue.batches())
    finish(second)
    bench.queue.stop()
    assert bench.queue.take_back() == [first]
    ring = bench.rig.start(bench.ring.base)
    assert [chain.head for chain in ring.pop(10)] == [third.head]


async def test_block_until_stop_is_cancelled_by_the_stop(bench: Bench) -> None:
    bench.submit()
    async with publisher(bench.queue) as nursery:

        async def hold() -> None:
            async for chain in bench.queue:
                with bench.queue.until_stop() as scope:
                    await trio.sleep_forever()
                assert scope.cancelled_caught
                chain.put_back()
            held.set()

        held = trio.Event()
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        bench.queue.stop()
        await held.wait()
        with bench.queue.until_stop() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_completion_after_the_end_changes_nothing(bench: Bench) -> None:
    bench.submit()
    chain = await anext(bench.queue)
    bench.queue.stop()
    bench.queue.take_back()
    finish(chain)
    assert bench.rig.collect() == []


async def test_broken_ring_ends_the_iteration_and_is_reported_once(split_bench: Bench) -> None:
    bench = split_bench
    tokens = bench.submit(2)
    async with publisher(bench.queue):
        first, second = await anext(bench.queue.batches())
        finish(first)
        bench.rig.view[16 * SIZE + 2 : 16 * SIZE + 4] = b"\xff\x7f"  # the available index
        assert [chain async for chain in bench.queue] == []
        assert bench.rig.collect() == tokens[:1]
        assert bench.queue.stopping
        assert "available index" in bench.queue.broken
        assert bench.owner.reasons == [bench.queue.broken]
        finish(second)
        await bench.queue.drained()
    assert bench.rig.collect() == []


async def test_kick_descriptor_that_is_no_eventfd_breaks_the_queue(bench: Bench) -> None:
    assert bench.owner.kick is not None
    bench.owner.kick.close()
    bench.owner.kick = EventFd(os.open(os.devnull, os.O_RDONLY))
    assert [chain async for chain in bench.queue] == []
    assert bench.owner.reasons == ["its kick descriptor is not an eventfd: Operation not permitted"]


@pytest.mark.parametrize("put_back", [True, False])
async def test_chains_completed_behind_one_that_is_not_are_for_the_next_queue(
    ordered_bench: Bench, put_back: bool
) -> None:
    bench = ordered_bench
    tokens = bench.submit(4)
    done, held, *behind = await anext(bench.queue.batches())
    for chain in (done, *behind):
        finish(chain)
    bench.queue.flush()
    assert bench.rig.collect() == tokens[:1]
    bench.queue.stop()
    if put_back:
        held.put_back()
    assert bench.queue.take_back() == []
    ring = bench.rig.start(bench.ring.base)
    ring.push([work(chain) for chain in ring.pop(10)])
    assert bench.rig.collect() == tokens[1:]

"""Rings set up, started, stopped and changed: each rule has a test named after it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import (
    AddMemReg,
    GetVringBase,
    ProtocolFeature,
    RemMemReg,
    SetStatus,
    SetVringBase,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    VringBase,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.vhost_user.echo import Echo, Gate
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, GUEST, USER, attached, works

if TYPE_CHECKING:
    from vhost_user import Virtqueue

PACKED = DEFAULT_FEATURES | Feature.RING_PACKED
RINGS = pytest.mark.parametrize(
    "features",
    [Feature.VERSION_1, DEFAULT_FEATURES, PACKED, PACKED | Feature.IN_ORDER, Feature.NONE],
    ids=["plain", "split", "packed", "in-order", "legacy"],
)


@RINGS
async def test_chains_go_to_the_device_and_back(features: Feature) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start(features)
        for number in range(100):
            data = bytes([number]) * 10
            assert await queue.exchange([data[:3], data[3:]], [4, 20]) == [data[:4], data[4:]]


@RINGS
async def test_ring_goes_on_where_it_stopped(features: Feature) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start(features)
        for _ in range(5):
            for _ in range(7):
                assert await works(queue)
            await queue.stop()
            await queue.start()


class Beginnings(Echo):
    """Notes of each start whether the queue began anew."""

    def __init__(self) -> None:
        super().__init__()
        self.began_anew: list[bool] = []

    async def run_queue(self, queue: Virtqueue) -> None:
        self.began_anew.append(queue.begins_anew)
        await super().run_queue(queue)


@RINGS
async def test_device_knows_a_ring_of_a_new_driver_from_one_that_goes_on(features: Feature) -> None:
    device = Beginnings()
    async with attached(device) as frontend:
        queue = await frontend.start(features)
        for _ in range(2):
            assert await works(queue)
            await queue.stop()
            await queue.start()
        assert await works(queue)
        await queue.enable(False)
        await queue.enable()
        assert await works(queue)
        await queue.stop()
        rebooted = frontend.queue()
        await rebooted.start()
        assert await works(rebooted)
    assert device.began_anew == [True, False, False, False, True]


async def test_rule_01_ring_starts_with_its_kick_descriptor_and_is_looked_at_without_a_kick() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue()
        queue.submit([b"early"], [8])
        queue.kick.take()
        await queue.start()
        assert await queue.wait() == [[b"early"]]


async def test_rule_01_ring_is_looked_at_when_it_is_enabled() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await queue.enable(False)
        queue.submit([b"while disabled"], [20])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
        queue.kick.take()
        await queue.enable()
        assert await queue.wait() == [[b"while disabled"]]


async def test_rule_01_parts_of_the_setup_come_in_any_order() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.enable()
        await frontend.request(SetVringKick(0, fds=(queue.kick.dup(),)))
        await queue.set_up()
        assert await works(queue)


async def test_rule_02_without_protocol_features_all_rings_are_enabled() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate(protocol=ProtocolFeature.NONE)
        await frontend.share_memory()
        for index in range(2):
            queue = frontend.queue(index)
            await queue.set_up()
            await frontend.request(SetVringKick(index, fds=(queue.kick.dup(),)))
            assert await works(queue)


async def test_rule_02_with_protocol_features_rings_begin_disabled() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.set_up()
        await frontend.request(SetVringKick(0, fds=(queue.kick.dup(),)))
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
        await queue.enable()
        assert await queue.wait() == [[b"ping"]]


class Discarder(Echo):
    """Gives chains back untouched while their queue is disabled."""

    async def run_disabled_queue(self, queue: Virtqueue) -> None:
        async for chain in queue:
            chain.complete(0)


async def test_rule_02_device_may_process_a_ring_while_it_is_disabled() -> None:
    device = Discarder()
    async with attached(device) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.set_up()
        await frontend.request(SetVringKick(0, fds=(queue.kick.dup(),)))
        assert await queue.exchange([b"ping"], [8]) == [b""]
        for _ in range(3):
            await queue.enable()
            assert await works(queue)
            await queue.enable(False)
            assert await queue.exchange([b"ping"], [8]) == [b""]
        assert (device.starts, device.served) == (3, 3)
        assert await queue.stop() == 7
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []


async def test_rule_02_features_without_bit_30_enable_a_ring_that_is_processed_while_disabled() -> None:
    async with attached(Discarder()) as frontend:
        queue = await frontend.start()
        await queue.enable(False)
        assert await queue.exchange([b"ping"], [8]) == [b""]
        await frontend.set_features(frontend.features.without(Feature.PROTOCOL_FEATURES))
        assert await works(queue)


async def test_rule_02_features_with_bit_30_leave_rings_enabled_or_disabled() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        assert await works(queue)
        await queue.enable(False)
        await frontend.set_features(frontend.features.without(Feature.LOG_ALL))
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
    assert device.starts == 1


async def test_rule_03_stopping_drains_the_ring_first() -> None:
    device = Gate()
    async with attached(device) as frontend:
        queue = await frontend.start()
        queue.submit([b"in hand"], [8])
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.stop)
            await wait_all_tasks_blocked()
            assert queue.collect() == []
            device.open.set()
        assert queue.base == 1
        assert queue.collect() == [[b"in hand"]]


async def test_rule_03_index_runs_free() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue(size=4)
        await queue.start()
        for _ in range(10):
            assert await works(queue)
        assert await queue.stop() == 10


async def test_rule_03_base_of_a_packed_ring_holds_both_wrap_counters() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start(PACKED, size=4)
        for _ in range(3):
            assert await works(queue)
        # Six descriptors of four: one full turn, and two.
        assert await queue.stop() == 2 | 0 << 15 | 2 << 16 | 0 << 31


async def test_rule_04_used_index_is_the_rings_own() -> None:
    """A guest that reboots has an empty ring, whatever was before."""
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        for _ in range(5):
            assert await works(queue)
        await queue.stop()
        again = frontend.queue()
        await again.start()
        assert await works(again)


async def test_rule_05_enabling_a_ring_that_the_driver_does_not_use() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        await frontend.request(SetVringEnable(1, True))
        assert await works(queue)
        assert (await frontend.ask(VringBase, GetVringBase(1))).base == 0
    assert device.starts == 1


async def test_rule_07_status_0_keeps_the_indices() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        assert await works(queue)
        await frontend.request(SetStatus(DeviceStatus(0)))
        assert await queue.stop() == 1
        await queue.start()
        assert await works(queue)


async def test_disabled_ring_keeps_its_place() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        for _ in range(3):
            assert await works(queue)
            await queue.enable(False)
            await queue.enable(True)
        assert await queue.stop() == 3
    assert device.starts == 4


async def test_running_ring_goes_on_at_another_address_of_the_same_memory() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        assert await works(queue)
        alias = replace(frontend.memory.region, guest_address=GUEST << 1, user_address=USER << 1)
        await frontend.request(AddMemReg(alias, fds=(frontend.memory.fd.dup(),)))
        old = queue.address()
        parts = {name: getattr(old, name) + USER for name in ("descriptor", "used", "available")}
        await frontend.request(replace(old, **parts))
        await frontend.request(RemMemReg(frontend.memory.region))
        frontend.memory.region = alias
        assert await works(queue)
        assert await queue.stop() == 2
    assert device.starts == 2


async def test_ring_that_is_set_up_anew_waits_for_its_kick_descriptor() -> None:
    """Some front-ends reset a device without asking where its rings stopped."""
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        assert await works(queue)
        again = frontend.queue()
        await again.set_up()
        again.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert again.collect() == queue.collect() == []
        await frontend.request(SetVringKick(0, fds=(again.kick.dup(),)))
        assert await again.wait() == [[b"ping"]]


async def test_queues_run_beside_each_other() -> None:
    async with attached(Echo()) as frontend:
        first = await frontend.start()
        second = frontend.queue(1)
        await second.start()
        assert await works(first)
        assert await works(second)
        await first.stop()
        assert await works(second)


async def test_device_that_returns_early_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Hasty(Echo):
        async def run_queue(self, queue: Virtqueue) -> None:
            async for chain in queue:
                self.serve(chain)
                return

    caplog.set_level(logging.INFO)
    async with attached(Hasty()) as frontend:
        queue = await frontend.start()
        assert await queue.exchange([b"ping"], [8]) == [b"ping"]
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert "queue 0 is served no more: run_queue() has returned" in caplog.text
        assert queue.collect() == []
        caplog.clear()
        assert await queue.stop() == 1
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await queue.stop()
    assert "served no more" not in caplog.text


@pytest.mark.parametrize("ring", [Feature.NONE, Feature.RING_PACKED], ids=["split", "packed"])
async def test_one_queue_is_reset_and_begins_anew_while_the_other_runs(ring: Feature) -> None:
    """RING_RESET: the front-end stops the queue, and later sets up another ring, of another size, from 0."""
    async with attached(Echo()) as frontend:
        first = await frontend.start(DEFAULT_FEATURES | Feature.RING_RESET | ring)
        second = frontend.queue(1)
        await second.start()
        for _ in range(3):
            assert await works(first)
        assert await works(second)
        await first.enable(False)
        await first.stop()
        assert await works(second)
        anew = frontend.queue(0, 8)
        await anew.start()
        for _ in range(20):
            assert await works(anew)
        assert await works(second)


@pytest.mark.parametrize(
    "message",
    [
        SetVringNum(2, 16),
        SetVringBase(2, 0),
        SetVringEnable(2, True),
        SetVringKick(2, no_fd=True),
        GetVringBase(2),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_queue_that_the_device_does_not_have(message: SetVringNum) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        reply = await frontend.try_request(message)
        assert reply is not None
        assert reply.failed
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.start()
        assert await works(queue)


@pytest.mark.parametrize(
    ("features", "base"),
    [(DEFAULT_FEATURES, 0), (PACKED, 0x8000), (PACKED, 0x8000_8000)],
    ids=["split", "packed, as DPDK has it", "packed"],
)
async def test_front_end_that_does_not_know_how_far_a_dead_back_end_had_come(
    features: Feature, base: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its ring go on at the beginning: the next one does what was not given back, and says so once."""
    first, second = Gate(), Echo()
    first.drain_seconds = 0
    async with attached(second) as later, attached(first) as frontend:
        queue = await frontend.start(features)
        first.open.set()
        for _ in range(21):
            assert await queue.exchange([], [8]) == [b""]
        first.open = trio.Event()
        queue.submit([], [8])
        await wait_all_tasks_blocked()
        await later.negotiate(features)
        later.memory.close()
        later.memory = frontend.memory
        await later.share_memory()
        queue._frontend, queue.base = later, base
        await queue.start()
        assert await queue.wait() == [[b""]]
        assert await queue.exchange([], [8]) == [b""]
        assert second.served == 2
        later.memory = type(later.memory)()
    (told,) = [line for line in caplog.messages if "which cannot be" in line]
    assert told.startswith(f"queue 0: the front-end has it go on at {0x8000_8000 if base else 0:#x}")


async def test_front_end_that_tells_half_of_where_its_packed_ring_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As DPDK's virtio-user does."""
    async with attached(Echo()) as frontend:
        await frontend.negotiate(PACKED)
        await frontend.share_memory()
        queue = frontend.queue()
        queue.base = 0x8000
        await queue.start()
        for _ in range(20):
            assert await queue.exchange([b"ping"], [8]) == [b"ping"]
    assert "queue 0" not in caplog.text


@pytest.mark.parametrize("features", [DEFAULT_FEATURES, PACKED], ids=["split", "packed"])
async def test_front_end_without_packed_rings_that_turned_them_on_is_named(
    features: Feature, caplog: pytest.LogCaptureFixture
) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate(features)
        await frontend.share_memory()
        await frontend.request(SetVringBase(0, 0))
    assert ("--without RING_PACKED" in caplog.text) == (features is PACKED)

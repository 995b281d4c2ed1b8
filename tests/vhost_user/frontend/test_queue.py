"""The front-end's queues against our own server, with every kind of ring and notification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo, Gate
from vhost_user.frontend import BackendError, Buffer, RingFullError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from vhost_user import Chain

SECONDS = 60
RINGS = [
    Feature.NONE,
    Feature.INDIRECT_DESC,
    Feature.EVENT_IDX,
    Feature.INDIRECT_DESC | Feature.EVENT_IDX,
]
INBAND = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


class Ordered(Echo):
    """Completes chains in twos, the second first."""

    features = Feature.IN_ORDER

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Chain] = []

    def serve(self, chain: Chain) -> None:
        self.held.insert(0, chain)
        if len(self.held) == 2:
            for each in self.held:
                super().serve(each)
            self.held.clear()


@pytest.mark.parametrize("packed", [Feature.NONE, Feature.RING_PACKED])
@pytest.mark.parametrize("features", RINGS)
async def test_requests_of_any_shape(features: Feature, packed: Feature) -> None:
    async with driving(Echo(), Feature.VERSION_1 | features | packed) as front:
        queue = await front.start_queue(size=8)
        for number in range(100):  # many times around the ring
            data = number.to_bytes(2, "big")
            assert await queue.request(data, b"-end", 3, 100) == data + b"-end"
            assert await queue.request(data, 1, indirect=False) == data[:1]
        assert await queue.request(b"nothing to write") == b""
        assert queue.outstanding == 0


@pytest.mark.parametrize("packed", [Feature.NONE, Feature.RING_PACKED])
async def test_in_order_completes_what_came_before(packed: Feature) -> None:
    async with driving(Ordered(), Feature.VERSION_1 | Feature.IN_ORDER | packed) as front:
        queue = await front.start_queue(size=8)
        for number in range(30):
            pair = [queue.submit(bytes([number, each]), 2) for each in range(2)]
            assert [await queue.wait(each) for each in pair] == [bytes([number, 0]), bytes([number, 1])]


async def test_legacy_ring_of_either_byte_order() -> None:
    for big_endian in (False, True):
        async with driving(Echo(), Feature.NONE) as front:
            assert ProtocolFeature.CROSS_ENDIAN in front.protocol_features
            queue = await front.start_queue(big_endian=big_endian)
            assert queue.ring.base == 0
            assert await queue.request(b"hello", 5) == b"hello"


@pytest.mark.parametrize(("kicks", "calls"), [(True, False), (False, True), (False, False)])
async def test_either_side_may_have_to_look(kicks: bool, calls: bool) -> None:
    async with driving(Echo()) as front:
        queue = await front.start_queue(kicks=kicks, calls=calls)
        for _ in range(3):
            assert await queue.request(b"hello", 5) == b"hello"
        assert (queue.kick.take() == 0, queue.call.take() == 0) == (True, True)


async def test_notifications_in_band() -> None:
    protocol = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
    async with driving(Echo(), protocol=protocol) as front:
        queue = await front.start_queue(kicks=False, calls=False)
        queue.has_calls = True  # by VRING_CALL: nothing is found by looking
        for _ in range(3):
            assert await queue.request(b"hello", 5) == b"hello"


async def test_several_tasks_share_a_queue_that_is_too_small() -> None:
    async with driving(Echo()) as front:
        queue = await front.start_queue(size=4)
        answers: list[bytes] = []

        async def ask(number: int) -> None:
            answers.append(await queue.request(b"%d" % number, 10, indirect=False))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert sorted(map(int, answers)) == list(range(50))


async def test_chain_that_never_fits_is_an_error() -> None:
    async with driving(Echo()) as front:
        queue = await front.start_queue(size=2)
        with pytest.raises(RingFullError):
            await queue.request(b"1", b"2", 3, indirect=False)
        assert await queue.request(b"1", b"2", 3, indirect=True) == b"12"


async def test_chains_are_completed_in_any_order() -> None:
    device = Gate()
    async with driving(device) as front:
        queue = await front.start_queue()
        first, second = queue.submit(b"first", 5), queue.submit(b"second", 6)
        assert queue.outstanding == 2
        device.open.set()
        assert await queue.wait(second) == b"second"
        assert await queue.wait(first) == b"first"


async def test_batch_is_published_with_one_kick() -> None:
    device = Gate()
    device.open.set()
    async with driving(device) as front:
        queue = await front.start_queue()
        await queue.request(b"hello", 5)
        kicks = queue.kicks
        requests = [queue.submit(b"hello", 5, publish=False) for _ in range(10)]
        await trio.testing.wait_all_tasks_blocked()
        assert device.served == 1
        queue.publish()
        for request in requests:
            assert await queue.wait(request) == b"hello"
        assert queue.kicks == kicks + 1


async def test_room_shows_what_the_device_did_not_count() -> None:
    class Miscounting(Echo):
        def serve(self, chain: Chain) -> None:
            chain.writable.write(b"hello")
            chain.complete(2)

    async with driving(Miscounting()) as front:
        queue = await front.start_queue()
        request = queue.submit(b"?", 5)
        assert await queue.wait(request) == b"he"
        assert (request.written, request.data, request.room) == (2, b"he", b"hello")


async def test_buffers_are_given_back() -> None:
    async with driving(Echo(), memory_size=1 << 16) as front:
        queue = await front.start_queue()
        for _ in range(20):
            await queue.request(bytes(20000), 20000)
        await front.reset()
        assert len(front.memory.allocate(1 << 16, 4096)) == 1 << 16


async def test_device_that_keeps_a_chain_is_an_error_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with driving(Gate(), patience=5) as front:
        queue = await front.start_queue()
        with pytest.raises(BackendError, match=r"does not give back a chain of queue 0 within 5 s"):
            await queue.request(b"hello", 5)
        request = queue.submit(b"hello", 5)
        with pytest.raises(BackendError, match="within"):
            await queue.wait(request)
        queue.ring.add([Buffer(front.memory.regions[0].guest_address, 1)], [])
        queue.publish()
        with pytest.raises(BackendError, match="within"):
            await queue.used()


@pytest.mark.parametrize("protocol", [ProtocolFeature.REPLY_ACK, INBAND])
async def test_ring_that_the_backend_finds_broken_is_an_error_at_once(protocol: ProtocolFeature) -> None:
    async with driving(Echo(), protocol=protocol) as front:
        queue, other = await front.start_queue(), await front.start_queue(1)
        queue.ring.add([Buffer(1 << 50, 5)], [])
        queue.publish()
        with pytest.raises(BackendError, match="the back-end says that queue 0 is broken"):
            await queue.request(b"hello", 5)
        with pytest.raises(BackendError, match="the back-end says that queue 0 is broken"):
            queue.submit(b"hello", 5)
        assert await other.request(b"hello", 5) == b"hello"


async def test_ring_that_the_backend_breaks_is_an_error() -> None:
    async with driving(Gate()) as front:
        queue = await front.start_queue()
        request = queue.submit(b"hello", 5)
        front.memory.view(queue.parts.device.address + 2, 2)[:] = b"\xff\x00"
        queue.call.signal()
        with pytest.raises(BackendError, match="queue 0: the used index jumped"):
            await queue.wait(request)


async def test_queue_is_stopped_and_goes_on_where_it_stopped() -> None:
    for packed in (Feature.NONE, Feature.RING_PACKED):
        device = Echo()
        async with driving(device, plus=packed) as front:
            queue = await front.start_queue(size=4)
            for _ in range(5):
                await queue.request(b"hello", 5)
            base = await front.stop_queue(queue)
            assert base == queue.base == queue.ring.base
            request = queue.submit(b"later", 5)
            await trio.testing.wait_all_tasks_blocked()
            assert device.served == 5
            await front.resume_queue(queue)
            assert await queue.wait(request) == b"later"


async def test_queue_is_disabled_and_enabled() -> None:
    device = Echo()
    async with driving(device) as front:
        queue = await front.start_queue(enable=False)
        request = queue.submit(b"hello", 5)
        await trio.testing.wait_all_tasks_blocked()
        assert device.served == 0
        await front.enable_queue(queue)
        assert await queue.wait(request) == b"hello"
        await front.enable_queue(queue, False)
        request = queue.submit(b"again", 5)
        await trio.testing.wait_all_tasks_blocked()
        assert device.served == 1
        await front.enable_queue(queue)
        assert await queue.wait(request) == b"again"


async def test_queue_is_started_once() -> None:
    async with driving(Echo()) as front:
        await front.start_queue()
        with pytest.raises(ValueError, match="queue 0 was started before"):
            await front.start_queue()

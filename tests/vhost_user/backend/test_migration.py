"""What a back-end leaves to those who come after it: requests in flight, and its device's own state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    Ack,
    CheckDeviceState,
    GetInflightFd,
    GetVringBaseSkipDrain,
    Inflight,
    MigrationPhase,
    ProtocolFeature,
    SetDeviceStateFd,
    SetInflightFd,
    TransferChannel,
    TransferDirection,
    VringBase,
    inflight,
)
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo, Gate
from tests.vhost_user.raw_frontend import ALL_PROTOCOL_FEATURES, DEFAULT_FEATURES, Frontend, attached
from tests.vhost_user.ring.rig import shared_file
from vhost_user import RefusedError

if TYPE_CHECKING:
    from tests.vhost_user.raw_frontend import Queue
    from vhost_user import Chain

PACKED = DEFAULT_FEATURES | Feature.RING_PACKED
KINDS = pytest.mark.parametrize("features", [DEFAULT_FEATURES, PACKED], ids=["split", "packed"])


async def tracked(frontend: Frontend, features: Feature) -> Queue:
    """Start a queue that notes what is in flight."""
    await frontend.negotiate(features)
    await frontend.share_memory()
    reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
    (fd,) = reply.take_fds()
    with fd:
        await give_back(frontend, fd, reply.mmap_size)
    queue = frontend.queue()
    await queue.start()
    return queue


async def give_back(frontend: Frontend, fd: OwnedFd, size: int) -> None:
    await frontend.request(SetInflightFd(size, 0, 1, 16, fds=(fd.dup(),)))


@KINDS
async def test_queue_works_with_what_is_in_flight_tracked(features: Feature) -> None:
    async with attached(Echo()) as frontend:
        queue = await tracked(frontend, features)
        for _ in range(40):
            assert await queue.exchange([b"ping"], [8]) == [b"ping"]


@KINDS
async def test_what_was_in_flight_is_served_by_the_next_backend(features: Feature) -> None:
    """Killed with three requests in hand; the next one gets them, in their order, from the buffer alone."""
    first, second = Gate(), Echo()
    first.drain_seconds = 0
    async with attached(second) as later, attached(first) as frontend:
        await frontend.negotiate(features)
        await frontend.share_memory()
        reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        (buffer,) = reply.take_fds()
        await give_back(frontend, buffer, reply.mmap_size)
        queue = frontend.queue()
        await queue.start()
        assert await serve_one(first, queue) == [b"served"]
        for data in (b"one", b"two", b"three"):
            queue.submit([data], [8])
        await wait_all_tasks_blocked()
        assert len(first.held) == 1

        await later.negotiate(features)
        later.memory.close()
        later.memory = frontend.memory
        await later.share_memory()
        with buffer:
            await give_back(later, buffer, reply.mmap_size)
        # The front-end of a back-end that was killed knows no better base than the one it started with.
        queue._frontend = later
        await queue.start()
        assert await queue.wait(3) == [[b"one"], [b"two"], [b"three"]]
        assert second.served == 3
        later.memory = type(later.memory)()


async def serve_one(device: Gate, queue: Queue) -> list[bytes]:
    device.open.set()
    result = await queue.exchange([b"served"], [8])
    device.open = trio.Event()
    return result


@KINDS
async def test_vring_base_without_draining_leaves_requests_in_flight(features: Feature) -> None:
    device = Gate()
    device.drain_seconds = 60
    async with attached(device) as frontend:
        queue = await tracked(frontend, features)
        queue.submit([b"in hand"], [8])
        await wait_all_tasks_blocked()
        reply = await frontend.ask(VringBase, GetVringBaseSkipDrain(0))
        assert device.ended
        assert queue.collect() == []
        device.open.set()
        queue.base = reply.base
        await queue.start()
        assert await queue.wait() == [[b"in hand"]]


async def test_vring_base_suspends_where_the_front_end_has_no_other_request_for_it() -> None:
    device = Gate()
    device.drain_seconds = 60
    async with attached(device) as frontend:
        await frontend.negotiate(
            protocol=ALL_PROTOCOL_FEATURES.without(ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN)
        )
        await frontend.share_memory()
        reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        (fd,) = reply.take_fds()
        with fd:
            await give_back(frontend, fd, reply.mmap_size)
        queue = frontend.queue()
        await queue.start()
        queue.submit([b"in hand"], [8])
        await wait_all_tasks_blocked()
        await queue.stop()
        assert device.ended


class Picky(Echo):
    """Does not complete what is old, for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.is_picky = True

    def serve(self, chain: Chain) -> None:
        if not self.is_picky or chain.readable.length != len(b"old"):
            super().serve(chain)


@KINDS
async def test_ring_that_begins_elsewhere_than_it_stopped_has_nothing_in_flight(features: Feature) -> None:
    """Its driver was reset, and the front-end kept the buffer: the requests of before are nobody's."""
    device = Picky()
    async with attached(device) as frontend:
        old = await tracked(frontend, features)
        for data in (b"old", b"old", b"done"):
            old.submit([data], [8])
        assert await old.wait() == [[b"done"]]
        await frontend.request(GetVringBaseSkipDrain(0))
        new = frontend.queue()
        for data in (b"first", b"second"):
            new.submit([data[:1], data[1:]], [8])
        await new.start()
        assert await new.wait(2) == [[b"first"], [b"second"]]
        assert await new.exchange([b"third"], [8]) == [b"third"]


@KINDS
async def test_buffer_that_the_front_end_gives_again_counts_more_than_the_base(features: Feature) -> None:
    """As after QEMU's loadvm: the buffer of back then, and any base."""
    device = Picky()
    async with attached(device) as frontend:
        await frontend.negotiate(features)
        await frontend.share_memory()
        reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        (fd,) = reply.take_fds()
        with fd:
            await give_back(frontend, fd, reply.mmap_size)
            queue = frontend.queue()
            await queue.start()
            for data in (b"old", b"old", b"done"):
                queue.submit([data], [8])
            assert await queue.wait() == [[b"done"]]
            await frontend.request(GetVringBaseSkipDrain(0))
            device.is_picky = False
            await give_back(frontend, fd, reply.mmap_size)
        await queue.start()
        assert await queue.wait(2) == [[b"old"], [b"old"]]
        assert await queue.exchange([b"new"], [8]) == [b"new"]
        assert device.served == 4


@pytest.mark.parametrize(("queues", "size"), [(0, 16), (3, 16), (1, 0), (1, 65535)])
async def test_inflight_buffer_of_impossible_size_is_refused(queues: int, size: int) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        reply = await frontend.try_request(GetInflightFd(0, 0, queues, size))
        assert reply is not None
        assert reply.failed


@KINDS
@pytest.mark.parametrize(("index", "size"), [(0, 64), (1, 16)])
async def test_ring_that_has_no_room_in_an_inflight_buffer_is_served_and_that_is_said(
    features: Feature, index: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The buffer is another back-end's, or an older version's: for one queue, of 16 entries at most."""
    async with attached(Echo()) as frontend:
        await frontend.negotiate(features)
        await frontend.share_memory()
        length = inflight.queue_bytes(16, packed=Feature.RING_PACKED in features)
        message = SetInflightFd(length, 0, 1, 16, fds=(shared_file(length),))
        await frontend.request(message)
        small, large = frontend.queue(1 - index), frontend.queue(index, size)
        for queue in (large, small) if index else (small, large):
            await queue.start()
            assert await queue.exchange([b"ping"], [8]) == [b"ping"]
        await large.stop()
        await large.start()
        assert await large.exchange([b"ping"], [8]) == [b"ping"]
    told = [line for line in caplog.messages if "no room in the in-flight buffer" in line]
    assert [line for line in told if line.startswith(f"queue {index} has {size} entries")] == told[-1:]


async def test_inflight_buffer_from_before_rings_were_said_to_be_packed_will_do() -> None:
    device = Echo()
    async with attached(device) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 2, 16))
        assert (reply.num_queues, reply.queue_size) == (2, 16)
        await frontend.set_features(PACKED | Feature.PROTOCOL_FEATURES)
        await frontend.request(SetInflightFd(reply.mmap_size, 0, 2, 16, fds=reply.take_fds()))
        for index in range(2):
            queue = frontend.queue(index)
            await queue.start()
            assert await queue.exchange([b"ping"], [8]) == [b"ping"]
            await frontend.request(GetVringBaseSkipDrain(index))


async def test_inflight_buffer_that_is_too_small_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        message = SetInflightFd(4096, 0, 2, 1024, fds=(frontend.memory.fd.dup(),))
        reply = await frontend.try_request(message)
        assert reply is not None
        assert reply.failed
        assert "an in-flight buffer of 4096 bytes for 2 queues of 1024" in caplog.text


# The device's own state


class Counter(Echo):
    """Has a state: how many it has served."""

    def save_state(self) -> bytes:
        return str(self.served).encode() * 100_000

    def load_state(self, state: bytes) -> None:
        if not state.isdigit():
            raise RefusedError("it is no number")
        self.served = int(state[:1])


async def transfer(frontend: Frontend, direction: TransferDirection) -> OwnedFd:
    """Begin a transfer; return our end of the pipe."""
    ends = [OwnedFd(fd) for fd in os.pipe()]
    theirs, ours = ends if direction is TransferDirection.LOAD else reversed(ends)
    reply = await frontend.ask(
        TransferChannel, SetDeviceStateFd(direction, MigrationPhase.STOPPED, fds=(theirs,))
    )
    assert reply.no_fd
    return ours


async def test_state_is_saved_and_loaded() -> None:
    source, target = Counter(), Counter()
    source.served = 7
    async with attached(source) as frontend:
        await frontend.negotiate()
        pipe = await transfer(frontend, TransferDirection.SAVE)
        async with trio.lowlevel.FdStream(pipe.detach()) as stream:
            state = b"".join([part async for part in stream])
        await frontend.request(CheckDeviceState())
    assert state == b"7" * 100_000
    async with attached(target) as frontend:
        await frontend.negotiate()
        pipe = await transfer(frontend, TransferDirection.LOAD)
        async with trio.lowlevel.FdStream(pipe.detach()) as stream:
            await stream.send_all(state)
        await frontend.request(CheckDeviceState())
    assert target.served == 7


async def test_state_that_the_device_refuses_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Counter()) as frontend:
        await frontend.negotiate()
        with await transfer(frontend, TransferDirection.LOAD) as pipe:
            os.write(pipe.fileno(), b"nonsense")
        reply = await frontend.try_request(CheckDeviceState())
        assert isinstance(reply, Ack)
        assert reply.failed
    assert "it is no number" in caplog.text


async def test_reader_that_goes_away_is_told_as_a_failure() -> None:
    device = Counter()
    device.served = 1
    async with attached(device) as frontend:
        await frontend.negotiate()
        (await transfer(frontend, TransferDirection.SAVE)).close()
        reply = await frontend.try_request(CheckDeviceState())
        assert reply is not None
        assert reply.failed


async def test_state_is_not_transferred_while_rings_run() -> None:
    async with attached(Counter()) as frontend:
        await frontend.start()
        theirs, ours = (OwnedFd(fd) for fd in os.pipe())
        with ours:
            reply = await frontend.try_request(SetDeviceStateFd(TransferDirection.LOAD, fds=(theirs,)))
            assert reply is not None
            assert reply.failed
            reply = await frontend.try_request(CheckDeviceState())
            assert reply is not None
            assert reply.failed


async def test_front_end_that_leaves_ends_a_transfer() -> None:
    async with attached(Counter()) as frontend:
        await frontend.negotiate()
        with await transfer(frontend, TransferDirection.LOAD):
            frontend.leave()
            await wait_all_tasks_blocked()

"""The front-end when its back-end leaves, is started anew, or moves: connection, in-flight, log, state."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import vhost_user
from protocol.vhost_user import GetFeatures
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo, Gate
from vhost_user import frontend
from vhost_user.frontend import BackendError, BackendGoneError, Buffer
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user import Chain, VirtioDevice, Virtqueue
    from vhost_user.frontend import DriverQueue, Request

SECONDS = 60
RINGS = [Feature.NONE, Feature.RING_PACKED]


class Host:
    """Where one back-end after the other is started."""

    def __init__(self, nursery: trio.Nursery, path: Path) -> None:
        self.path = path
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(self, device: VirtioDevice) -> None:
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._serve, device)

    async def stop(self) -> None:
        """End the back-end at once: nothing is drained."""
        self._scope.cancel()
        await self._ended.wait()

    async def _serve(self, device: VirtioDevice, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            await vhost_user.serve(device, socket_path=self.path, task_status=task_status)
        self._ended.set()


@pytest.fixture
def host(nursery: trio.Nursery) -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as name:
        yield Host(nursery, Path(name) / "socket")


class HalfDone(Echo):
    """Completes every second chain, and keeps the others."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Chain] = []

    async def run_queue(self, queue: Virtqueue) -> None:
        async for chain in queue:
            if len(self.kept) > self.served:
                self.serve(chain)
            else:
                self.kept.append(chain)


async def test_backend_that_leaves_is_an_error_for_all_who_wait(host: Host) -> None:
    errors: list[str] = []

    async def wait(queue: DriverQueue, request: Request) -> None:
        with pytest.raises(BackendGoneError) as error:
            await queue.wait(request)
        errors.append(str(error.value))
        del error

    await host.start(Gate())
    async with frontend.connect(host.path) as front:
        await front.negotiate()
        queue = await front.start_queue()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(wait, queue, queue.submit(b"hello", 5))
            await trio.testing.wait_all_tasks_blocked()
            await host.stop()
        with pytest.raises(BackendGoneError):
            await front.ask(GetFeatures())
        with pytest.raises(BackendGoneError):
            queue.submit(b"hello", 5)
    assert errors == ["the back-end has closed the connection; its log says why"] * 2


@pytest.mark.parametrize("ring", RINGS)
async def test_goes_on_with_the_next_backend_where_the_driver_is(host: Host, ring: Feature) -> None:
    await host.start(Echo())
    async with frontend.connect(host.path, resilient=True) as front:
        await front.negotiate(plus=ring)
        queue = await front.start_queue(size=4)
        for _ in range(7):
            assert await queue.request(b"first", 5) == b"first"
        await host.stop()
        request = queue.submit(b"between", 7)
        await host.start(second := Echo())
        await front.reconnect()
        assert front.features & Feature.RING_PACKED == ring
        assert await queue.wait(request) == b"between"
        assert second.served == 1


@pytest.mark.parametrize("size", [8, 1024])
@pytest.mark.parametrize("ring", RINGS)
async def test_nothing_is_lost_and_nothing_done_twice_with_inflight(
    host: Host, ring: Feature, size: int
) -> None:
    """Of four chains the first back-end completes the second and the fourth.

    QEMU 10.0 asks for a buffer for queues of one size, and gives its rings another one.
    """
    await host.start(first := HalfDone())
    async with frontend.connect(host.path, resilient=True) as front:
        await front.negotiate(plus=ring)
        await front.track_inflight(size=8, num_queues=2)
        queue = await front.start_queue(size=size)
        requests = [queue.submit(b"%d" % number, 5, publish=number == 3) for number in range(4)]
        assert await queue.wait(requests[3]) == b"3"
        assert [request.is_done for request in requests] == [False, True, False, True]
        await host.stop()
        assert (first.served, len(first.kept)) == (2, 2)
        await host.start(second := Echo())
        await front.reconnect()
        assert [await queue.wait(request) for request in requests] == [b"0", b"1", b"2", b"3"]
        assert second.served == 2
        for served in (queue, await front.start_queue(1, size=size)):
            assert await served.request(b"hello", 5) == b"hello"


async def test_task_that_waits_goes_on_waiting_for_the_next_backend(host: Host) -> None:
    await host.start(Gate())
    answers: list[bytes] = []

    async def ask(queue: DriverQueue) -> None:
        answers.append(await queue.request(b"hello", 5))

    async with frontend.connect(host.path, resilient=True) as front:
        await front.negotiate()
        await front.track_inflight()
        queue = await front.start_queue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, queue)
            nursery.start_soon(ask, queue)
            await trio.testing.wait_all_tasks_blocked()
            await host.stop()
            await host.start(Echo())
            await front.reconnect()
    assert answers == [b"hello"] * 2


async def test_reconnects_to_another_path(host: Host, nursery: trio.Nursery) -> None:
    await host.start(Echo())
    other = Host(nursery, host.path.with_name("other"))
    await other.start(second := Echo())
    async with frontend.connect(host.path) as front:
        await front.negotiate()
        queue = await front.start_queue()
        await queue.request(b"hello", 5)
        await front.stop_queue(queue)
        await front.reconnect(str(other.path))
        assert await queue.request(b"again", 5) == b"again"
        assert second.served == 1
        with pytest.raises(FileNotFoundError):
            await front.reconnect("/no/such")


@pytest.mark.parametrize("ring", RINGS)
async def test_pages_that_are_written_to_are_logged_while_it_is_on(ring: Feature) -> None:
    async with driving(Echo(), plus=ring) as front:
        queue = await front.start_queue()
        await queue.request(b"hello", 5)
        pages = await front.start_log()
        block = front.memory.allocate(3 * 4096, 4096)
        queue.ring.add([Buffer(block.address, 4096 + 5)], [Buffer(block.address + 4090, 4096 + 5)])
        queue.publish()
        await queue.used()
        written = {block.address // 4096, block.address // 4096 + 1}
        assert pages.pages() == written | {queue.parts.device.address // 4096}
        pages.clear()
        assert pages.pages() == set()
        await front.stop_log()
        await queue.request(b"hello", 5)
        assert pages.pages() == set()
        pages.close()


class Stateful(Echo):
    """Has a state of its own."""

    def __init__(self, state: bytes = b"") -> None:
        super().__init__()
        self.state = state

    def save_state(self) -> bytes:
        return self.state

    def load_state(self, state: bytes) -> None:
        if state.startswith(b"bad"):
            raise vhost_user.RefusedError("bad state")
        self.state = state


async def test_state_of_a_device_moves_to_another() -> None:
    state = bytes(range(256)) * 1000  # more than a pipe holds
    async with driving(Stateful(state)) as front:
        assert await front.save_state() == state
    device = Stateful()
    async with driving(device) as front:
        await front.load_state(state)
        assert device.state == state
        with pytest.raises(BackendError, match="refuses CHECK_DEVICE_STATE"):
            await front.load_state(b"bad")

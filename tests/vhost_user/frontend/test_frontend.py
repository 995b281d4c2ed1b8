"""The front-end against our own server: negotiation, configuration space, memory, the back-end's requests."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio
import trio.testing

import vhost_user
from protocol.errors import LocalProtocolError
from protocol.fds import OwnedFd
from protocol.vhost_user import (
    GetStatus,
    GetVringBase,
    IotlbMsg,
    IotlbType,
    LookedUpObject,
    NetSetMtu,
    Permission,
    ProtocolFeature,
    SetStatus,
    SharedObjectAdd,
    SharedObjectLookup,
    Status,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.vhost_user.echo import Echo
from vhost_user import frontend
from vhost_user.frontend import BackendError, Buffer, Translation
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.vhost_user import ConfigFlag

SECONDS = 60


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Configurable(Echo):
    """Has a configuration space that may be written to, and says so when it changes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.config = bytes(8)

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    def change(self, config: bytes) -> None:
        self.config = config
        self.notify_config_changed()


async def test_connects_to_a_path_and_leaves(directory: Path) -> None:
    device = Echo()
    path = directory / "echo"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(vhost_user.serve, device, socket_path=path))
        for _ in range(2):
            async with frontend.connect(path) as front:
                await front.negotiate()
                assert await (await front.start_queue()).request(b"hello", 5) == b"hello"
        nursery.cancel_scope.cancel()
    assert device.resets == 2


async def test_waits_for_a_backend_that_is_not_up(directory: Path) -> None:
    path = directory / "echo"
    connected = trio.Event()

    async def connect() -> None:
        async with frontend.connect(path, wait_for_backend=SECONDS) as front:
            await front.negotiate()
            connected.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(vhost_user.serve, Echo(), socket_path=path))
        with trio.fail_after(SECONDS):
            await connected.wait()
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_an_error_that_names_the_path(directory: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(directory / "nobody")):
        async with frontend.connect(directory / "nobody"):
            pass


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with driving(Echo()):
            _ = 1 / 0


async def test_what_the_device_raises_comes_out_of_the_block() -> None:
    class Broken(Echo):
        async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
            async for _ in queue:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the block is cancelled
        async with driving(Broken()) as front:
            queue = await front.start_queue()
            await queue.request(b"hello", 5)


async def test_negotiates_what_is_offered_and_harmless() -> None:
    device = Echo()
    async with driving(device) as front:
        assert Feature.RING_PACKED in front.offered
        assert front.features == device.offered_features.without(
            Feature.RING_PACKED | Feature.ACCESS_PLATFORM | Feature.LOG_ALL
        )
        assert ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK in front.protocol_features
        assert ProtocolFeature.INBAND_NOTIFICATIONS not in front.protocol_features
        assert front.num_queues == 2


async def test_negotiates_exactly_what_it_is_told() -> None:
    async with driving(
        Echo(), Feature.VERSION_1, plus=Feature.RING_PACKED, protocol=ProtocolFeature.CONFIG
    ) as front:
        assert front.features == Feature.VERSION_1 | Feature.RING_PACKED | Feature.PROTOCOL_FEATURES
        assert front.protocol_features == ProtocolFeature.CONFIG
        assert await (await front.start_queue()).request(b"hello", 5) == b"hello"


async def test_features_that_are_not_offered_are_an_error() -> None:
    async with driving(Echo()) as front:
        with pytest.raises(BackendError, match="does not offer NOTIFICATION_DATA"):
            await front.set_features(Feature.VERSION_1 | Feature.NOTIFICATION_DATA)
    with pytest.raises(BackendError, match="does not offer the protocol feature RARP"):
        async with driving(Echo(), protocol=ProtocolFeature.RARP):
            pass


async def test_any_message_can_be_asked() -> None:
    async with driving(Echo()) as front:
        await front.ask(SetStatus(DeviceStatus.DRIVER))
        assert await front.ask(GetStatus()) == Status(DeviceStatus.DRIVER)


async def test_refusal_is_an_error_that_names_the_message() -> None:
    async with driving(Echo()) as front:
        with pytest.raises(BackendError, match=r"refuses SET_CONFIG offset=0 data=01"):
            await front.set_config(0, b"\1")
        with pytest.raises(BackendError, match=r"refuses GET_VRING_BASE index=7"):
            await front.ask(GetVringBase(7))
        assert await front.get_config(2) == b"\0\1"


async def test_message_that_must_not_be_sent_is_not_sent() -> None:
    async with driving(Echo()) as front:
        with pytest.raises(LocalProtocolError, match="it needs MTU, which was not negotiated"):
            await front.ask(NetSetMtu(1500))
        assert await front.get_config(2) == b"\0\1"


async def test_configuration_space_is_read_and_written() -> None:
    device = Configurable()
    async with driving(device) as front:
        await front.set_config(2, b"\7\7")
        assert device.config == b"\0\0\7\7\0\0\0\0"
        assert await front.get_config(3, 1) == b"\0\7\7"


async def test_configuration_change_is_told_once() -> None:
    device = Configurable()
    async with driving(device) as front:
        await front.start_queue()
        device.change(b"\5" * 8)
        with trio.fail_after(SECONDS):
            await front.config_changed()
        assert await front.get_config(8) == b"\5" * 8
        with trio.move_on_after(0.01) as again:
            await front.config_changed()
        assert again.cancelled_caught


async def test_backend_requests_go_to_handlers() -> None:
    device = Echo()
    protocol = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.SHARED_OBJECT
    device.protocol_features = ProtocolFeature.SHARED_OBJECT
    announced: list[UUID] = []

    async def add(request: SharedObjectAdd) -> None:
        announced.append(request.uuid)

    async with driving(device, protocol=protocol) as front:
        with pytest.raises(vhost_user.FrontendError, match="refuses SHARED_OBJECT_ADD"):
            await device.frontend.announce_object(UUID(int=1))
        front.handlers[SharedObjectAdd] = add
        await device.frontend.announce_object(UUID(int=2))
    assert announced == [UUID(int=2)]


async def test_handler_that_refuses_is_a_refusal() -> None:
    device = Echo()
    device.protocol_features = ProtocolFeature.SHARED_OBJECT

    async def refuse(request: SharedObjectAdd) -> None:
        raise vhost_user.RefusedError("not today")

    async with driving(device) as front:
        front.handlers[SharedObjectAdd] = refuse
        with pytest.raises(vhost_user.FrontendError):
            await device.frontend.announce_object(UUID(int=1))


async def test_handler_replies_with_a_file() -> None:
    device = Echo()
    device.protocol_features = ProtocolFeature.SHARED_OBJECT

    async def look_up(request: SharedObjectLookup) -> LookedUpObject:
        fd = OwnedFd(os.memfd_create("object"))
        os.write(fd.fileno(), request.uuid.bytes)
        return LookedUpObject(fds=(fd,))

    async with driving(device) as front:
        front.handlers[SharedObjectLookup] = look_up
        with await device.frontend.look_up_object(UUID(int=3)) as found:
            assert os.pread(found.fileno(), 16, 0) == UUID(int=3).bytes


async def test_memory_is_added_and_removed_while_a_queue_runs() -> None:
    async with driving(Echo(), memory_size=1 << 16) as front:
        queue = await front.start_queue()
        with pytest.raises(frontend.OutOfMemoryError):
            queue.submit(b"hello", 1 << 16)
        region = await front.add_memory(1 << 20)
        assert await queue.request(b"hello" * 10000, 50000) == b"hello" * 10000
        await front.remove_memory(region)
        with pytest.raises(frontend.OutOfMemoryError):
            queue.submit(b"hello", 1 << 16)
        assert await queue.request(b"hello", 5) == b"hello"


async def test_memory_is_added_without_slots() -> None:
    protocol = ProtocolFeature.REPLY_ACK
    async with driving(Echo(), memory_size=1 << 16, protocol=protocol) as front:
        queue = await front.start_queue()
        region = await front.add_memory(1 << 20)
        assert await queue.request(b"hello" * 10000, 50000) == b"hello" * 10000
        await front.remove_memory(region)
        assert await queue.request(b"hello", 5) == b"hello"


async def test_memory_that_the_backend_refuses_is_not_kept() -> None:
    async with driving(Echo()) as front:
        first = front.memory.regions[0]
        front.memory.regions.clear()  # so that nothing here objects
        with pytest.raises(BackendError, match="refuses ADD_MEM_REG"):
            await front.add_memory(1 << 16, first.guest_address)
        assert front.memory.regions == []
        front.memory.regions.append(first)


async def test_buffer_may_cross_a_border_of_regions() -> None:
    async with driving(Echo()) as front:
        queue = await front.start_queue()
        first = front.memory.regions[0]
        second = await front.add_memory(1 << 16, first.end)
        first.view[-3:], second.view[:2] = b"hel", b"lo"
        queue.ring.add([Buffer(first.end - 3, 5)], [Buffer(second.guest_address + 100, 5)])
        queue.publish()
        await queue.used()
        assert bytes(second.view[100:105]) == b"hello"


async def test_guest_addresses_stand_for_user_addresses_where_negotiated() -> None:
    protocol = ProtocolFeature.GPA_ADDRESSES | ProtocolFeature.REPLY_ACK
    async with driving(Echo(), protocol=protocol) as front:
        assert front.memory.user_offset == 0
        assert await (await front.start_queue()).request(b"hello", 5) == b"hello"


async def test_device_is_reset_and_driven_anew() -> None:
    device = Echo()
    async with driving(device) as front:
        queue = await front.start_queue()
        await queue.request(b"hello", 5)
        await front.reset()
        assert device.resets == 2
        assert front.queues == {}
        with pytest.raises(BackendError, match="queue 0 was closed"):
            queue.submit(b"hello", 5)
        await front.set_features(Feature.VERSION_1 | Feature.RING_PACKED)
        assert await (await front.start_queue()).request(b"again", 5) == b"again"


@pytest.mark.parametrize("ring", [Feature.NONE, Feature.RING_PACKED])
async def test_iommu_translates_what_it_is_asked_for(ring: Feature) -> None:
    async with driving(Echo(), plus=Feature.ACCESS_PLATFORM | ring) as front:
        queue = await front.start_queue()
        assert await queue.request(b"hello", 5) == b"hello"
        buffer = front.memory.put(b"other")
        page = buffer.address & ~4095
        front.iommu.translations = [
            *(Translation(each.address, each.address, len(each)) for each in queue.parts.blocks),
            Translation(0x7000_0000, page, 4096),
        ]
        await front.ask(IotlbMsg(0, 1 << 40, 0, Permission.NONE, IotlbType.INVALIDATE))
        iova = 0x7000_0000 + buffer.address - page
        queue.ring.add([Buffer(iova, 5)], [Buffer(iova + 16, 5)])
        queue.publish()
        await queue.used()
        assert bytes(front.memory.view(buffer.address + 16, 5)) == b"other"

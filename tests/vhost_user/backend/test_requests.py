"""What a back-end does with requests that are about no ring and no memory."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    CloseCryptoSession,
    Config,
    ConfigFlag,
    CreateCryptoSession,
    CryptoSession,
    Features,
    GetConfig,
    GetFeatures,
    GetQueueNum,
    GetSharedObject,
    GetShmemConfig,
    GetStatus,
    GpuSetSocket,
    NetSetMtu,
    Number,
    PostcopyEnd,
    ProtocolFeature,
    ResetDevice,
    ResetOwner,
    SendRarp,
    SetBackendReqFd,
    SetConfig,
    SetOwner,
    SetStatus,
    SharedMemory,
    SharedObject,
    Status,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.vhost_user.echo import Echo, Gate
from tests.vhost_user.everything import NAME, Everything, file_of, is_refused
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, attached, until

if TYPE_CHECKING:
    from trio.testing import MockClock


# Negotiation


async def test_features_of_device_and_queues_are_offered() -> None:
    async with attached(Everything()) as frontend:
        offered = (await frontend.ask(Features, GetFeatures())).features
        assert Feature(1 << 5) | Feature.RING_PACKED | Feature.EVENT_IDX | Feature.INDIRECT_DESC in offered
        assert Feature.VERSION_1 | Feature.LOG_ALL | Feature.PROTOCOL_FEATURES in offered
        assert not offered & Feature.IN_ORDER


async def test_what_is_withheld_is_not_offered() -> None:
    device = Everything()
    before = device.offered_features, device.offered_protocol_features
    device.withhold(Feature.RING_PACKED)
    device.withhold(Feature.ACCESS_PLATFORM)
    device.withhold(ProtocolFeature.INBAND_NOTIFICATIONS)
    async with attached(device) as frontend:
        offered = (await frontend.ask(Features, GetFeatures())).features
        assert offered == before[0].without(Feature.RING_PACKED | Feature.ACCESS_PLATFORM)
        assert device.offered_protocol_features == before[1].without(ProtocolFeature.INBAND_NOTIFICATIONS)


async def test_device_is_told_what_was_negotiated() -> None:
    device = Everything()
    async with attached(device) as frontend:
        await frontend.negotiate(DEFAULT_FEATURES | Feature(1 << 5))
    assert device.asked == [DEFAULT_FEATURES | Feature(1 << 5) | Feature.PROTOCOL_FEATURES]


async def test_feature_that_was_not_offered_is_refused_and_changes_nothing() -> None:
    device = Everything()
    async with attached(device) as frontend:
        await frontend.negotiate()
        frontend.session.negotiation.offered |= Feature(1 << 6)
        with pytest.raises(AssertionError, match="was refused"):
            await frontend.set_features(DEFAULT_FEATURES | Feature(1 << 6))
    assert device.asked == [DEFAULT_FEATURES | Feature.PROTOCOL_FEATURES]


def test_protocol_features_follow_from_what_a_device_overrides() -> None:
    optional = (
        ProtocolFeature.RARP | ProtocolFeature.MTU | ProtocolFeature.CRYPTO_SESSION | ProtocolFeature.SHMEM
    ) | ProtocolFeature.SHARED_OBJECT
    assert optional in Everything().offered_protocol_features
    assert not Echo().offered_protocol_features & optional
    assert ProtocolFeature.CONFIG in Echo().offered_protocol_features
    assert ProtocolFeature.DEVICE_STATE not in Everything().offered_protocol_features


async def test_number_of_queues() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        assert (await frontend.ask(Number, GetQueueNum())).value == 2


async def test_rule_12_features_can_be_asked_for_at_any_time() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        queue.submit([b"ping"], [8])
        await frontend.request(GetFeatures())
        assert await queue.wait() == [[b"ping"]]


async def test_rule_14_unknown_request_is_answered_with_an_error_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unheard(SetOwner):
        number = 99  # type: ignore[assignment]
        label = "UNHEARD"

    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        assert await is_refused(frontend, Unheard())
        assert "its number is not known" in caplog.text
        assert await frontend.try_request(Unheard(), need_reply=False) is None
        queue = frontend.queue()
        await frontend.share_memory()
        await queue.start()
        assert await queue.exchange([b"ping"], [8]) == [b"ping"]


async def test_connection_without_framing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend._stream.send(b"GET / HTTP/1.0\r\n\r\n")
        await frontend.until_closed()
    assert "this is not vhost-user version 1" in caplog.text


# Status and reset


async def test_status_is_kept() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        status = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
        await frontend.request(SetStatus(status))
        assert (await frontend.ask(Status, GetStatus())).status == status


async def test_device_is_reset_at_every_connection() -> None:
    device = Echo()
    for count in range(1, 3):
        async with attached(device) as frontend:
            await frontend.request(GetFeatures())
            assert device.resets == count


async def test_reset_device_stops_all_rings_and_keeps_what_was_negotiated() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        assert await queue.exchange([b"ping"], [8]) == [b"ping"]
        await frontend.request(ResetDevice())
        assert device.resets == 2
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
        again = frontend.queue()
        await again.start()
        assert await again.exchange([b"ping"], [8]) == [b"ping"]


async def test_rule_08_reset_owner_disables_rings_and_keeps_everything_else() -> None:
    device = Echo()
    async with attached(device) as frontend:
        queue = await frontend.start()
        await frontend.request(ResetOwner())
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
        await queue.enable()
        assert await queue.wait() == [[b"ping"]]
        assert device.resets == 1


# The configuration space


async def test_rule_10_config_is_as_long_as_was_asked_for() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        assert (await frontend.ask(Config, GetConfig(4, 4))).data == bytes([4, 5, 6, 7])
        assert (await frontend.ask(Config, GetConfig(12, 8))).data == bytes([12, 13, 14, 15, 0, 0, 0, 0])
        assert (await frontend.ask(Config, GetConfig(200, 3))).data == bytes(3)


async def test_config_is_written_by_driver_and_migration() -> None:
    device = Everything()
    async with attached(device) as frontend:
        await frontend.negotiate()
        await frontend.request(SetConfig(2, b"\xaa\xbb"))
        await frontend.request(SetConfig(0, b"\xcc", ConfigFlag.MIGRATION))
        assert (await frontend.ask(Config, GetConfig(0, 5))).data == b"\xcc\1\xaa\xbb\4"
        assert device.asked[1:] == [ConfigFlag.DRIVER, ConfigFlag.MIGRATION]


async def test_config_that_cannot_be_written_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        assert await is_refused(frontend, SetConfig(0, b"\1"))
        assert "SET_CONFIG is refused: 1 byte at 0: the configuration space is read-only" in caplog.text


async def test_change_of_config_is_told() -> None:
    device = Echo()
    device.notify_config_changed()  # nobody is there: nothing happens
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.start()
        device.notify_config_changed()
        await frontend.open_channel(nursery)
        device.notify_config_changed()
        await frontend.until_asked()
        assert [repr(each) for each in frontend.backend_requests] == ["ConfigChange(need_reply)"]
        nursery.cancel_scope.cancel()


async def test_changes_of_config_that_come_together_become_two() -> None:
    """One is on its way; all that follow are told by one more."""
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.start()
        await frontend.open_channel(nursery)
        for _ in range(100):
            device.notify_config_changed()
        await frontend.until_asked(2)
        await wait_all_tasks_blocked(0.01)
        assert len(frontend.backend_requests) == 2
        nursery.cancel_scope.cancel()


async def test_suspended_device_sends_nothing_until_a_ring_is_started() -> None:
    """vhost-user, "Suspended device state": before the first start, and between a stop and the next one."""
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate()
        await frontend.share_memory()
        await frontend.open_channel(nursery)
        queue = frontend.queue()
        for changes in (1, 2):
            device.notify_config_changed()
            device.notify_config_changed()
            await wait_all_tasks_blocked(0.01)
            assert len(frontend.backend_requests) == changes - 1
            await queue.start()
            await frontend.until_asked(changes)
            await wait_all_tasks_blocked(0.01)
            assert len(frontend.backend_requests) == changes
            await queue.stop()
        nursery.cancel_scope.cancel()


async def test_started_ring_that_is_disabled_suspends_nothing() -> None:
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await frontend.start()
        await frontend.open_channel(nursery)
        await queue.enable(False)
        device.notify_config_changed()
        await frontend.until_asked()
        nursery.cancel_scope.cancel()


async def test_rule_13_change_of_config_during_a_request_waits_for_nothing() -> None:
    """A front-end that waits for us does not read the channel."""

    class Restless(Everything):
        def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
            for _ in range(1000):
                self.notify_config_changed()

    async with attached(Restless()) as frontend:
        await frontend.start()
        ours, theirs = socket.socketpair()
        with ours:
            await frontend.request(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))
            await frontend.request(SetConfig(0, b"\1"))


# What only some devices are asked for


async def test_requests_of_one_device_type() -> None:
    device = Everything()
    async with attached(device) as frontend:
        await frontend.negotiate()
        await frontend.request(SendRarp(b"\x52\x54\0\1\2\3"))
        await frontend.request(NetSetMtu(9000))
        assert (await frontend.ask(CryptoSession, CreateCryptoSession(b"secret"))).data == b"secret7"
        await frontend.request(CloseCryptoSession(7))
    assert device.asked[1:] == [b"\x52\x54\0\1\2\3", 9000, b"secret", 7]


async def test_gpu_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with attached(Everything()) as frontend:
            await frontend.negotiate()
            await frontend.request(GpuSetSocket(fds=(OwnedFd(theirs.detach()),)))
        assert ours.recv(10) == b"hello"


async def test_gpu_socket_that_nobody_wants_is_refused_and_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with attached(Echo()) as frontend:
            await frontend.negotiate()
            assert await is_refused(frontend, GpuSetSocket(fds=(OwnedFd(theirs.detach()),)))
            assert ours.recv(1) == b""


async def test_postcopy_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        frontend.session.negotiation.protocol_features |= ProtocolFeature.PAGEFAULT
        assert await is_refused(frontend, PostcopyEnd())
        assert "POSTCOPY_END is refused" in caplog.text


async def test_sizes_of_shared_memory_regions() -> None:
    async with attached(Everything()) as frontend:
        await frontend.negotiate()
        sizes = (await frontend.ask(SharedMemory, GetShmemConfig())).sizes
        assert {region: size for region, size in enumerate(sizes) if size} == {0: 0x1000, 3: 0x2000}


async def test_shared_objects_are_given_to_other_devices() -> None:
    async with attached(Everything()) as frontend:
        await frontend.negotiate()
        reply = await frontend.ask(SharedObject, GetSharedObject(NAME))
        (fd,) = reply.take_fds()
        with fd:
            assert "test-object" in file_of(fd)
        assert await is_refused(frontend, GetSharedObject(UUID(int=1)))


# Draining


async def test_deadline_takes_the_queue_from_a_device_that_does_not_finish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Gate()
    device.drain_seconds = 0.05
    async with attached(device) as frontend:
        queue = await frontend.start()
        queue.submit([b"one"], [8])
        await wait_all_tasks_blocked()
        assert await queue.stop() == 0  # the newest chain goes back to the ring
        assert device.ended
        await queue.start()
        device.open.set()
        assert await queue.wait() == [[b"one"]]
    assert "has not completed" not in caplog.text


async def test_request_that_cannot_be_cancelled_is_waited_for_and_told_of(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Gate):
        """Does not let go of a chain, as one that a thread is at."""

        async def run_queue(self, queue: object) -> None:
            with trio.CancelScope(shield=True):
                await super().run_queue(queue)  # type: ignore[arg-type]

    device = Stubborn()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await frontend.start()
        queue.submit([b"one"], [8])
        await until(lambda: device.held)
        nursery.start_soon(queue.stop)
        for _ in range(3):
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
        await wait_all_tasks_blocked()
        device.open.set()
    assert "queue 0 is to stop, and waits for 1 request under way, which cannot be cancelled" in caplog.text
    assert queue.base == 1


async def test_chains_that_are_lost_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Second(Gate):
        """Completes every chain but the first."""

        async def run_queue(self, queue: object) -> None:
            async for chain in queue:  # type: ignore[attr-defined]
                if chain.number:
                    self.serve(chain)

    device = Second()
    device.drain_seconds = 0.05
    async with attached(device) as frontend:
        queue = await frontend.start()
        queue.submit([b"one"], [8])
        queue.submit([b"two"], [8])
        assert await queue.wait() == [[b"two"]]
        assert await queue.stop() == 2
    assert "queue 0 stops with 1 chain that the device has not completed: " in caplog.text
    assert "lost to the driver" in caplog.text

"""What a back-end asks of its front-end, over the channel that it was given for that."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    Config,
    ConfigChange,
    GetConfig,
    MapFlag,
    ProtocolFeature,
    Request,
    SetBackendReqFd,
    SetVringCall,
    ShmemMap,
    ShmemUnmap,
    VringCall,
)
from tests.vhost_user.echo import Echo
from tests.vhost_user.everything import NAME, Everything, file_of, is_refused
from tests.vhost_user.raw_frontend import ALL_PROTOCOL_FEATURES, INBAND, attached, until
from vhost_user import FrontendError

if TYPE_CHECKING:
    from protocol.vhost_user import FrontendChannel, Packet, Refused
    from tests.vhost_user.raw_frontend import Frontend, Queue


async def test_shared_memory_is_mapped_and_unmapped() -> None:
    device = Everything()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate()
        await frontend.open_channel(nursery)
        with OwnedFd(os.memfd_create("test-shared", os.MFD_CLOEXEC)) as fd:
            await device.frontend.map_shared_memory(
                3, fd.fileno(), size=0x1000, offset=0x2000, fd_offset=0x3000
            )
        await device.frontend.unmap_shared_memory(3, size=0x1000, offset=0x2000)
        assert frontend.backend_requests == [
            ShmemMap(3, 0x3000, 0x2000, 0x1000, MapFlag.READ_WRITE, need_reply=True),
            ShmemUnmap(3, 0, 0x2000, 0x1000, need_reply=True),
        ]
        nursery.cancel_scope.cancel()


async def test_shared_objects_are_announced_withdrawn_and_looked_up() -> None:
    device = Everything()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate()
        await frontend.open_channel(nursery)
        await device.frontend.announce_object(NAME)
        await device.frontend.withdraw_object(NAME)

        async def answer(session: FrontendChannel, request: Request | Refused) -> Packet | None:
            assert isinstance(request, Request)
            return session.reply(request, 0, (frontend.memory.fd.fileno(),))

        frontend.answer = answer  # type: ignore[method-assign]
        with await device.frontend.look_up_object(NAME) as fd:
            assert "test-guest" in file_of(fd)
        nursery.cancel_scope.cancel()


async def test_front_end_that_refuses() -> None:
    device = Everything()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate()
        await frontend.open_channel(nursery)

        async def answer(session: FrontendChannel, request: Request | Refused) -> Packet | None:
            return session.acknowledge(request, ok=False)

        frontend.answer = answer  # type: ignore[method-assign]
        with pytest.raises(FrontendError, match="the front-end refuses SHARED_OBJECT_ADD uuid=00112233"):
            await device.frontend.announce_object(NAME)
        nursery.cancel_scope.cancel()


async def test_nobody_to_ask() -> None:
    device = Everything()
    with pytest.raises(FrontendError, match="no front-end is connected"):
        await device.frontend.announce_object(NAME)
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate(protocol=ALL_PROTOCOL_FEATURES.without(ProtocolFeature.SHARED_OBJECT))
        with pytest.raises(FrontendError, match="SET_BACKEND_REQ_FD"):
            await device.frontend.announce_object(NAME)
        await frontend.open_channel(nursery)
        with pytest.raises(FrontendError, match="SHARED_OBJECT_ADD: it needs SHARED_OBJECT"):
            await device.frontend.announce_object(NAME)
        nursery.cancel_scope.cancel()


async def test_front_end_that_leaves_while_it_is_asked() -> None:
    device = Everything()
    asked: list[str] = []
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate()
        ours, theirs = socket.socketpair()
        await frontend.request(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))

        async def ask() -> None:
            with pytest.raises(FrontendError, match="the front-end has gone"):
                await device.frontend.announce_object(NAME)
            asked.append("and was told")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        ours.close()
    assert asked == ["and was told"]


async def test_channel_may_be_replaced() -> None:
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.start()
        await frontend.open_channel(nursery)
        await wait_all_tasks_blocked()
        await frontend.open_channel(nursery)
        await wait_all_tasks_blocked()
        device.notify_config_changed()
        await frontend.until_asked()
        nursery.cancel_scope.cancel()


async def called_in_band(frontend: Frontend, nursery: trio.Nursery) -> Queue:
    """Start a queue, the driver of which is called by messages."""
    await frontend.negotiate(protocol=INBAND)
    await frontend.share_memory()
    await frontend.open_channel(nursery)
    queue = frontend.queue()
    await queue.start()
    await frontend.request(SetVringCall(0, no_fd=True))
    return queue


class Reader:
    """Reads the back-end's messages at once, and answers them when it is told to."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._unanswered: list[tuple[FrontendChannel, Request | Refused]] = []
        frontend.answer = self.note  # type: ignore[method-assign]

    async def note(self, session: FrontendChannel, request: Request | Refused) -> None:
        self._unanswered.append((session, request))

    async def answer(self) -> None:
        """Answer what has come, and wait until the back-end has done what it does then."""
        unanswered, self._unanswered = self._unanswered, []
        for session, request in unanswered:
            await self._frontend.answer_late(session.acknowledge(request))
        await wait_all_tasks_blocked()

    def read(self) -> list[type]:
        """Return the kinds of the messages that have come since the last time."""
        kinds = [type(request) for request in self._frontend.backend_requests]
        self._frontend.backend_requests.clear()
        return kinds


async def test_nothing_is_under_way_in_band_with_a_change_of_the_configuration() -> None:
    """User Mode Linux forgets, as long as there are calls, the change that it reads together with one."""
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await called_in_band(frontend, nursery)
        reader = Reader(frontend)
        queue.submit([b"ping"], [8])
        await until(lambda: frontend.backend_requests)
        device.notify_config_changed()
        await wait_all_tasks_blocked()
        assert reader.read() == [VringCall]
        await reader.answer()
        assert reader.read() == [ConfigChange]
        assert await queue.wait() == [[b"ping"]]
        queue.ring.want_calls(True)
        queue.submit([b"ping"], [8])
        await until(lambda: device.served == 2)
        await wait_all_tasks_blocked()
        assert reader.read() == []
        await reader.answer()
        assert reader.read() == [VringCall]
        nursery.cancel_scope.cancel()


async def test_change_is_told_again_in_band_until_the_configuration_is_read() -> None:
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await called_in_band(frontend, nursery)
        device.notify_config_changed()
        await frontend.until_asked()
        queue.submit([b"ping"], [8])
        kinds = [type(request) for request in await frontend.until_asked(3)]
        assert kinds == [ConfigChange, VringCall, ConfigChange]
        assert (await frontend.ask(Config, GetConfig(0, 4))).data == device.config[:4]
        assert await queue.wait() == [[b"ping"]]
        queue.ring.want_calls(True)
        queue.submit([b"pong"], [8])
        await frontend.until_asked(4)
        await wait_all_tasks_blocked()
        assert [type(request) for request in frontend.backend_requests[3:]] == [VringCall]
        nursery.cancel_scope.cancel()


async def test_channel_that_is_no_socket_is_refused() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        file = OwnedFd(os.open(os.devnull, os.O_RDWR))
        assert await is_refused(frontend, SetBackendReqFd(fds=(file,)))


async def test_request_needs_its_feature(caplog: pytest.LogCaptureFixture) -> None:
    device = Echo()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate(protocol=ALL_PROTOCOL_FEATURES.without(ProtocolFeature.SHMEM))
        await frontend.open_channel(nursery)
        message = ShmemMap(0, 0, 0, 4096, fds=(frontend.memory.fd.dup(),))
        with pytest.raises(FrontendError, match="SHMEM_MAP: it needs SHMEM"):
            await device.frontend.request(message)
        assert message.fds == ()
        nursery.cancel_scope.cancel()

"""serve(): where front-ends come from, one after the other, and what becomes of a device that fails."""

from __future__ import annotations

import socket
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.io import EventFd, FdStream, SocketInUseError, connect, listen
from protocol.vhost_user import GetFeatures, pack
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import SECONDS, Frontend
from vhost_user import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vhost_user import Chain, VirtioDevice


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, as a socket's path is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vu-") as path:
        yield Path(path)


@asynccontextmanager
async def serving(device: VirtioDevice, path: Path) -> AsyncIterator[None]:
    with trio.fail_after(3 * SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, device, socket_path=path))
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Frontend]:
    frontend = Frontend(await connect(str(path)))
    try:
        yield frontend
    finally:
        frontend.close()


async def is_served(frontend: Frontend) -> bool:
    queue = await frontend.start()
    return await queue.exchange([b"ping"], [8]) == [b"ping"]


async def test_rule_21_front_ends_come_one_after_the_other(directory: Path) -> None:
    device = Echo()
    async with serving(device, directory / "s"):
        for count in range(1, 4):
            async with connected(directory / "s") as frontend:
                assert await is_served(frontend)
            assert device.served == count


@pytest.mark.parametrize("sent", [pack(GetFeatures.number, 1, b"")[:5], pack(GetFeatures.number, 1, b"")])
async def test_rule_21_front_end_that_gives_up_half_way_may_try_again(directory: Path, sent: bytes) -> None:
    """QEMU's blk connects anew where its set-up failed, be it within a message or before the answer."""
    device = Echo()
    async with serving(device, directory / "s"):
        for _ in range(3):
            with await connect(str(directory / "s")) as stream:
                await stream.send(sent)
        async with connected(directory / "s") as frontend:
            assert await is_served(frontend)
    assert device.served == 1


async def test_second_front_end_waits_until_the_first_has_left(directory: Path) -> None:
    async with serving(Echo(), directory / "s"), connected(directory / "s") as first:
        assert await is_served(first)
        async with connected(directory / "s") as second:
            with trio.move_on_after(0.05) as scope:
                await second.request(GetFeatures())
            assert scope.cancelled_caught
            first.leave()
            await second.reply()
            assert await is_served(second)


async def test_socket_is_removed_in_the_end(directory: Path) -> None:
    async with serving(Echo(), directory / "s"):
        assert (directory / "s").is_socket()
    assert not (directory / "s").exists()


async def test_socket_in_use(directory: Path) -> None:
    async with serving(Echo(), directory / "s"):
        with pytest.raises(SocketInUseError):
            await serve(Echo(), socket_path=directory / "s")


async def test_inherited_listening_socket(directory: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / "s"))
    sock.listen()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, Echo(), fd=sock.detach()))
            for _ in range(2):
                async with connected(directory / "s") as frontend:
                    assert await is_served(frontend)
            nursery.cancel_scope.cancel()


async def test_inherited_connected_socket_is_served_to_its_end() -> None:
    ours, theirs = socket.socketpair()
    frontend = Frontend(FdStream(ours))
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, Echo(), fd=theirs.detach()))
            assert await is_served(frontend)
            frontend.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_inherited_socket_of_another_kind(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(type=kind)
    with ours, theirs, pytest.raises(ValueError, match="not a UNIX stream socket"):
        await serve(Echo(), fd=theirs.fileno())


async def test_inherited_descriptor_that_is_no_socket() -> None:
    with EventFd.create() as other, pytest.raises(ValueError, match="not a socket"):
        await serve(Echo(), fd=other.fileno())


async def test_client_connects_again_and_again(directory: Path) -> None:
    """Before the front-end is there, and after it has gone."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, Echo(), connect=directory / "s"))
            await trio.sleep(0.01)
            for _ in range(3):
                with listen(str(directory / "s")) as listener:
                    frontend = Frontend(await listener.accept())
                    assert await is_served(frontend)
                    frontend.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "where",
    [{}, {"socket_path": "a", "fd": 3}, {"connect": "a", "socket_path": "b"}, {"fd": 3, "connect": "b"}],
)
async def test_one_place_is_to_be_given(where: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give one of"):
        await serve(Echo(), **where)  # type: ignore[arg-type]


class Fragile(Echo):
    """Fails when it is asked to."""

    def serve(self, chain: Chain) -> None:
        if bytes(chain.readable.first(4)[0]) == b"fail":
            raise ArithmeticError("as it was told")
        super().serve(chain)


async def test_device_that_fails_ends_its_connection_and_no_other(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Fragile(), directory / "s"):
        async with connected(directory / "s") as frontend:
            queue = await frontend.start()
            queue.submit([b"fail"], [8])
            await frontend.until_closed()
        async with connected(directory / "s") as frontend:
            assert await is_served(frontend)
    (record,) = [each for each in caplog.records if each.exc_info]
    assert "the device failed" in record.message
    assert "ArithmeticError: as it was told" in caplog.text
    caplog.clear()


async def test_device_that_fails_on_a_connected_socket_is_told_to_the_caller() -> None:
    ours, theirs = socket.socketpair()
    frontend = Frontend(FdStream(ours))

    async def fail() -> None:
        queue = await frontend.start()
        queue.submit([b"fail"], [8])
        await frontend.until_closed()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with pytest.raises(ExceptionGroup) as caught:
                await serve(Fragile(), fd=theirs.detach())
    assert caught.group_contains(ArithmeticError, match="as it was told")
    frontend.close()


async def test_background_task_runs_while_a_front_end_is_connected(directory: Path) -> None:
    class Busy(Echo):
        running = 0

        async def run(self) -> None:
            self.running += 1
            try:
                await trio.sleep_forever()
            finally:
                self.running -= 1

    device = Busy()
    async with serving(device, directory / "s"):
        assert device.running == 0
        async with connected(directory / "s") as frontend:
            await frontend.request(GetFeatures())
            assert device.running == 1
        async with connected(directory / "s") as frontend:
            await frontend.request(GetFeatures())
            assert device.running == 1
    assert device.running == 0


async def test_cancelling_gives_back_what_was_completed(directory: Path) -> None:
    class Holding(Echo):
        async def run_queue(self, queue: object) -> None:
            async for batch in queue.batches():  # type: ignore[attr-defined]
                for chain in batch:
                    self.serve(chain)
                await trio.sleep_forever()

    async with serving(Holding(), directory / "s"):
        frontend = Frontend(await connect(str(directory / "s")))
        queue = await frontend.start()
        queue.submit([b"ping"], [8])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
    assert queue.collect() == [[b"ping"]]
    frontend.close()

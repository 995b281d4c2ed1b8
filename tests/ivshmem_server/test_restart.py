"""A server that is started again after one that was killed, on the memory of that one's peers."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import ivshmem_server
from ivshmem_server import SharedMemory
from ivshmem_server.status import format_status
from tests.rig.programs.server import ServerStartError, memory_name, start_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.rig.programs.server import RunningServer


@asynccontextmanager
async def restarted(server: RunningServer, *options: str) -> AsyncIterator[RunningServer]:
    """Kill a server, and start another one on its memory."""
    server.program.kill()
    await server.program.wait()
    directory = server.socket.parent / "again"
    directory.mkdir()
    async with start_server(directory, "-M", server.shm.name, *options) as again:
        yield again


async def peer_id(server: RunningServer) -> int:
    async with ivshmem_server.connect(server.socket) as peer:
        return peer.id


@pytest.mark.parametrize("options", [[], ["--sticky"]], ids=["", "sticky"])
async def test_new_peers_have_ids_that_no_old_one_can_have(tmp_path: Path, options: list[str]) -> None:
    async with (
        start_server(tmp_path, *options) as server,
        ivshmem_server.connect(server.socket) as first,
        ivshmem_server.connect(server.socket) as second,
    ):
        assert (first.id, second.id) == (0, 1)
        first.memory[:5] = b"ours!"
        async with restarted(server, *options) as again:
            async with ivshmem_server.connect(again.socket) as new:
                assert new.id == 2
                assert bytes(new.memory[:5]) == b"ours!"
                first.ring(1)
                with trio.fail_after(60):
                    assert await second.wait() == 1
            log = again.program.output()
            status = await again.status()
    assert f"shared memory {server.shm} is of a server that was killed, with what was in it; it is" in log
    assert "peers of an earlier server still have this memory, and ring each other: ids begin at 2, as" in log
    assert status["ids_reserved"] == 2
    assert "2 may be those of peers of an earlier server" in format_status(status)
    assert not server.shm.exists()


async def test_first_peer_has_0_again_once_the_old_ones_have_gone(tmp_path: Path) -> None:
    async with start_server(tmp_path) as server, ivshmem_server.connect(server.socket) as stays:
        async with ivshmem_server.connect(server.socket):
            server.program.kill()
            await server.program.wait()
        async with restarted(server) as again:
            assert await peer_id(again) == 2
            stays.close()
            assert await peer_id(again) == 0
            assert (await again.status())["ids_reserved"] == 0


async def test_without_old_peers_nothing_is_said_of_them(tmp_path: Path) -> None:
    async with start_server(tmp_path) as server:
        assert await peer_id(server) == 0
        async with restarted(server, "--log-format", "json") as again:
            assert await peer_id(again) == 0
            log = [json.loads(line)["message"] for line in again.program.output().splitlines()]
    assert ["killed" in message for message in log] == [True, False]
    assert not server.shm.exists()


async def test_object_that_was_there_before_stays(tmp_path: Path) -> None:
    async with start_server(tmp_path) as first:
        shm = first.shm
        shm.chmod(0o660)  # as users do who make it theirs
        async with restarted(first) as again:
            assert f"shared memory {shm} was there before, and stays in the end" in again.program.output()
    assert shm.exists()
    shm.unlink()


async def test_server_without_an_id_to_give_does_not_start(tmp_path: Path) -> None:
    shm = Path("/dev/shm", memory_name(tmp_path))
    shm.write_bytes(bytes(4 << 20))
    try:
        with SharedMemory.posix(memory_name(tmp_path), 4 << 20) as memory:
            memory.mark_ids(65536)
            kept = memory.fd.dup()
        with (
            kept,
            pytest.raises(ServerStartError, match=f"have {shm}, and may have any id: restart them, or"),
        ):
            async with start_server(tmp_path):
                pass
    finally:
        shm.unlink(missing_ok=True)

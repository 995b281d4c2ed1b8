"""What a server tells of itself, and who else is taken for one."""

from __future__ import annotations

import json
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from ivshmem_server.status import NoStatusError, format_status, read_status
from tests.ivshmem_server.clients import Client
from tests.ivshmem_server.program.client_program import error
from tests.ivshmem_server.program.server_program import COMMAND, one_line_error, run
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from pathlib import Path


async def test_status_socket_and_status_command(tmp_path: Path) -> None:
    path = tmp_path / "status"
    async with start_server(tmp_path, "-n", "3", "--status-socket", str(path)) as server:
        client = await Client.joined(server.socket, 3)
        done = await trio.to_thread.run_sync(run, "status", "--json", str(path))
        status = json.loads(done.stdout)
        assert status["socket"] == str(server.socket)
        assert status["pid"] == server.program.pid
        assert status["memory"] == {"kind": "shm", "path": str(server.shm), "size": 4 << 20}
        assert status["counters"] == {"joined": 1, "messages": 6}
        [peer] = status["peers"]
        assert peer.pop("since").endswith("+00:00")
        mine = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
        assert peer == {"id": 0, "vectors": 3, "queued": 0} | mine
        table = (await trio.to_thread.run_sync(run, "status", str(path))).stdout
        assert re.search(
            rf"^ *0 +{os.getpid()} +{os.getuid()} +{os.getgid()} +3 +0 +0:00:\d\d$", table, re.MULTILINE
        )
        client.close()
    assert not path.exists()


async def test_status_of_the_socket_for_guests_says_at_once_what_that_is(tmp_path: Path) -> None:
    async with start_server(tmp_path, "-n", "3", memfd=True) as server:
        argv = [*COMMAND, "status", str(server.socket)]
        done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"it is the socket for guests and other peers (-S); give a server's --status-socket" in done.stderr


async def test_status_of_one_who_says_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/silent")
        silent.listen()
        monkeypatch.setattr("ivshmem_server.status.READ_SECONDS", 0.01)
        with pytest.raises(NoStatusError, match=r"nothing came within 0\.01 s"):
            read_status(f"{tmp_path}/silent")


async def test_client_of_the_status_socket_is_told_what_that_is(tmp_path: Path) -> None:
    async with start_server(tmp_path, memfd=True) as server:
        said = await error("dump", "-S", server.status_socket)
    assert "what came is JSON: this is a server's --status-socket, give its -S" in said


def test_status_of_what_is_no_socket_is_told_as_such(tmp_path: Path) -> None:
    said = one_line_error(run("status", str(tmp_path)))
    assert f"no status from {tmp_path}: it is not a socket; give a server's --status-socket" in said


async def test_status_counts_one_slot_as_one(tmp_path: Path) -> None:
    async with start_server(tmp_path, "--sticky", memfd=True) as server:
        (await Client.joined(server.socket)).close()
        await server.until_peers()
        text = format_status(await server.status())
    assert "peers    0 of at most 65536, 1 vector each, 1 vacant slot\n" in text

"""Who may connect to ivshmem-server's socket, and whom it admits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.ivshmem_server.program.server_program import COMMAND, one_line_error
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from pathlib import Path


async def test_socket_has_the_mode_it_was_given(tmp_path: Path) -> None:
    async with start_server(tmp_path, "--mode", "0660") as server:
        assert server.socket.stat().st_mode & 0o777 == 0o660


def test_socket_of_systemd_has_the_mode_that_its_unit_says(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/socket")
        listening.listen()
        activate = ["sh", "-c", 'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" 3<&0', "sh"]
        argv = [*activate, *COMMAND, "-F", "--memfd", "--mode", "0660"]
        done = subprocess.run(
            argv, stdin=listening.fileno(), capture_output=True, text=True, timeout=60, check=False
        )
    assert "--mode: for a socket that we make" in one_line_error(done)
    assert "say in the .socket unit SocketMode=" in done.stderr


OTHER = 4711
"""A user and a group that nobody has."""

_AS_OTHER = """\
import os, sys
from ivshmem_server.program import client, server
_, program, user, groups, *arguments = sys.argv
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(int(user))
os.setuid(int(user))
sys.exit(globals()[program].main(arguments))
"""


async def run_as_other(
    program: str, *arguments: object, groups: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run ivshmem-client or ivshmem-server as the user OTHER, who may not be able to read Python itself."""
    argv = [sys.executable, "-c", _AS_OTHER, program, str(OTHER), groups, *map(str, arguments)]
    return await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)


for_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@for_root
@pytest.mark.parametrize(
    ("allowed", "groups", "admitted"),
    [
        (["--allow-gid", "4712"], "4712", True),
        (["--allow-gid", "daemon"], "1", True),
        (["--allow-gid", "4712"], ",".join(map(str, range(4700, 5100))), True),
        (["--allow-gid", "4713", "--allow-gid", "4712"], "4712", True),
        (["--allow-uid", "4713", "--allow-gid", "4712"], "4712", True),
        (["--allow-gid", str(OTHER)], "", True),
        (["--allow-uid", str(OTHER)], "", True),
        (["--allow-gid", "4712"], "", False),
        (["--allow-gid", "4712"], "4713", False),
        (["--allow-uid", "4712"], "4712", False),
        (["--allow-gid", "0"], "", False),
    ],
)
async def test_groups_of_a_client_count_as_they_do_for_files(
    directory: Path, allowed: list[str], groups: str, admitted: bool
) -> None:
    directory.chmod(0o755)
    async with start_server(directory, "--mode", "0666", *allowed, memfd=True) as server:
        done = await run_as_other("client", "dump", "-S", server.socket, groups=groups)
    assert done.stdout.startswith(b"us: peer 0") == admitted, done
    assert (b"the server refused: the server does not allow this" in done.stderr) != admitted, done


@for_root
async def test_refusal_names_user_group_and_groups(directory: Path) -> None:
    directory.chmod(0o755)
    options = ["--mode", "0666", "--allow-gid", "4712", "--log-format", "json"]
    async with start_server(directory, *options, memfd=True) as server:
        done = await run_as_other("client", "dump", "-S", server.socket, groups="4714,4713")
        log = server.program.output()
    assert b"the server does not allow this user or group (--allow-uid, --allow-gid)" in done.stderr
    [refused] = [json.loads(line) for line in log.splitlines() if '"refused"' in line]
    assert f"uid {OTHER}, gid {OTHER}, groups 4713, 4714: the server does not allow" in refused["message"]
    assert (refused["uid"], refused["gid"], refused["groups"]) == (OTHER, OTHER, [4713, 4714])


@for_root
async def test_socket_that_another_user_left_is_told_as_such(directory: Path) -> None:
    directory.chmod(0o1777)
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.chmod(0o666)
    done = await run_as_other("server", "-F", "--memfd", "-S", path)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"ivshmem-server: cannot listen on {path}: a socket is left there that only its owner, user 0, or"
        " root may remove; ask its owner to remove it, or choose another path\n"
    )

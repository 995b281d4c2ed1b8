"""What ivshmem-server does not have for granted: /proc, memory, open files."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.ivshmem_server.clients import Client
from tests.ivshmem_server.program.client_program import running
from tests.ivshmem_server.program.server_program import COMMAND, one_line_error
from tests.rig.programs import tmpfs
from tests.rig.programs.hidden import each_way, launcher, with_hidden_proc
from tests.rig.programs.server import memory_name, start_server

SHM = Path("/dev/shm")


@with_hidden_proc
@each_way
@pytest.mark.parametrize(
    "options", [["--memfd"], ["--memfd", "-l", "16T"], ["-m", "{}"], []], ids=["memfd", "large", "-m", "-M"]
)
async def test_it_serves_where_proc_is_hidden(tmp_path: Path, hide: str, options: list[str]) -> None:
    options = [option.format(tmp_path) for option in options]
    async with start_server(tmp_path, *options, launcher=launcher(hide)) as server:
        (await Client.joined(server.socket)).close()
        assert server.program.output().count("\n") == 1  # that it listens


@with_hidden_proc
@each_way
async def test_memory_in_use_is_told_as_such_where_proc_is_hidden(tmp_path: Path, hide: str) -> None:
    async with start_server(tmp_path):
        argv = [*launcher(hide), *COMMAND, "-F", "-S", f"{tmp_path}/second", "-M", memory_name(tmp_path)]
        done = await trio.run_process(argv, capture_stderr=True, check=False)
    assert f"{memory_name(tmp_path)} is in use by another server; stop it or choose" in done.stderr.decode()


@tmpfs.for_mounter
def test_memory_that_we_may_not_make_an_object_for_is_told_of_the_other_kind(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    argv = ["unshare", "--mount", "--", "sh", "-c", mount, "sh", *COMMAND]
    argv += ["-F", "-M", memory_name(tmp_path), "-S", f"{tmp_path}/socket"]
    said = one_line_error(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False))
    assert said.endswith(": Read-only file system; we may not write to /dev/shm: use --memfd\n")


FEW_FILES = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
"""Runs the command behind it with room for 256 open files."""


def test_more_vectors_than_files_can_be_open_are_refused(tmp_path: Path) -> None:
    argv = [*FEW_FILES, *COMMAND, "-F", "--memfd", "-S", f"{tmp_path}/socket", "-n", "300"]
    said = one_line_error(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False))
    assert "a peer with 300 vectors takes 301 open files of the server's, of at most 256: raise" in said


@pytest.mark.parametrize("files", [6, 9, 12, 16, 20])  # with fewer, Python itself fails
def test_limit_of_open_files_that_is_too_low_is_named(tmp_path: Path, files: int) -> None:
    few = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    log = str(tmp_path / "log")
    argv = [*few, *COMMAND, "-F", "-M", memory_name(tmp_path), "-S", f"{tmp_path}/socket", "--log-file", log]
    said = one_line_error(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False))
    assert "raise the limit of open files (ulimit -n)" in said or "raise the limit (ulimit -n)" in said
    assert "give another" not in said
    assert "give less" not in said
    assert not (SHM / memory_name(tmp_path)).exists()


@pytest.mark.parametrize(("vectors", "options", "peers"), [(200, [], 1), (60, ["--max-peers", "8"], 3)])
async def test_room_for_fewer_peers_than_wanted_is_told_and_true(
    tmp_path: Path, vectors: int, options: list[str], peers: int
) -> None:
    options = ["-n", str(vectors), *options]
    async with start_server(tmp_path, *options, memfd=True, launcher=FEW_FILES) as server:
        assert f"there is room for {peers} peer" in server.program.output()
        joined = [await Client.joined(server.socket, vectors) for _ in range(peers)]
        assert [client.id for client in joined] == list(range(peers))
        for client in joined:
            client.close()


@tmpfs.for_mounter
@pytest.mark.parametrize("kind", ["-M", "-m"])
def test_memory_for_which_no_room_is_left_is_refused(tmp_path: Path, directory: Path, kind: str) -> None:
    name, place = (str(directory), directory) if kind == "-m" else (memory_name(tmp_path), SHM)
    argv = [*tmpfs.launcher(place, 6), *COMMAND, "-F", "-S", f"{tmp_path}/socket", kind, name]
    done = subprocess.run([*argv, "-l", "4M"], capture_output=True, text=True, timeout=60, check=False)
    said = one_line_error(done)
    where = place if kind == "-m" else place / name
    assert f"{where} has 2.0 MiB free of 8.0 MiB, not 4 MiB, and a guest that fills the memory" in said


@tmpfs.for_mounter
async def test_memory_that_is_there_and_has_no_room_to_be_filled_is_warned_of(tmp_path: Path) -> None:
    shm = tmpfs.launcher(SHM, 6, sparse=memory_name(tmp_path))
    async with start_server(tmp_path, "-l", "4M", launcher=shm) as server:
        log = server.program.output()
    grows = f"{memory_name(tmp_path)} exists, and fills 4.0 MiB more, of which 2.0 MiB are free"
    assert f"shared memory {SHM}/{grows}" in log


@tmpfs.for_mounter
@pytest.mark.parametrize(("options", "code"), [(["--prealloc"], 0), ([], -signal.SIGBUS)])
async def test_preallocated_memory_can_be_filled_whatever_others_take(
    tmp_path: Path, directory: Path, options: list[str], code: int
) -> None:
    options = ["-m", str(directory), "-l", "4M", *options]
    async with start_server(tmp_path, *options, launcher=tmpfs.launcher(directory)) as server:
        tmpfs.fill_up(server.program, directory)
        async with running("fill", 0, "4194304", 1, "-S", server.socket) as client:
            assert await client.wait() == code

"""ivshmem-server as a program: options, daemon, signals, status, and one line for each error."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio

from protocol import __version__
from tests.ivshmem_server.clients import Client
from tests.ivshmem_server.program.server_program import COMMAND, daemon, one_line_error, run, stop
from tests.rig.programs.process import CLOSED, start
from tests.rig.programs.server import memory_name, start_server


def until_asleep(pid: int) -> None:
    """Wait until a process waits for something in the kernel."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "S":
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["-l", "zero"], "'zero' is not a size; write a number with K, M, G or T"),
        (["-l", "0"], "'0' is zero"),
        (["-l=-4M"], "'-4M' is not a size"),
        (["-F", "--memfd", "-l", "1P"], "a memfd cannot hold 1 PiB"),
        (["-n", "0"], "'0' is not a number from 1 to 2048"),
        (["-n", "2049"], "'2049' is not a number from 1 to 2048"),
        (["-v"], "add -F or --log-file"),
        (["-F", "-M", "a/b"], "not a name for POSIX shared memory"),
        (["-F", "-m", "/no/such"], "'/no/such': No such file or directory; give another directory with -m"),
        (["-F", "--memfd", "-S", "/no/such/socket"], "create the directory first, or choose another path"),
        (
            ["-F", "--memfd", "-S", "/dev"],
            "/dev: something that is not a socket is there; remove it or choose",
        ),
        (["-F", "--memfd", "-S", "/tmp/" + "x" * 108], "at most 107 bytes"),
        (["-F", "--memfd", "--fd", "0"], "descriptor 0 is no"),
        (["-F", "--memfd", "--log-file", "/no/such/log"], "give another --log-file"),
        (["--mode", "999"], "write it in octal"),
        (["--owner", "nobody-of-that-name"], "there is no user"),
        (["--group", "nobody-of-that-name"], "there is no group"),
        (["--fd", "0", "--mode", "0660"], "--mode: for a socket that we make; leave out that, or --fd"),
        (["--hugetlb", "2M"], "goes with --memfd"),
        (["-S", "/no/such", "--status-socket", "/no/./such"], "is given for two sockets; give each a path"),
        (["status", "/no/such/status"], "is a server running with --status-socket there?"),
    ],
)
def test_wrong_use_ends_in_one_line_that_says_what_to_do(options: list[str], said: str) -> None:
    assert said in one_line_error(run(*options))


@pytest.mark.parametrize("options", [["--print-qemu-args"], ["--print-libvirt-xml"], ["status"]])
async def test_result_that_cannot_be_written_is_an_error_of_one_line(
    tmp_path: Path, options: list[str]
) -> None:
    async with start_server(tmp_path, memfd=True) as server:
        argv = [*COMMAND, *options, *([str(server.status_socket)] if options == ["status"] else [])]
        full = os.open("/dev/full", os.O_WRONLY)
        done = await trio.run_process(argv, stdout=full, capture_stderr=True, check=False)
        os.close(full)
        assert done.returncode == 1
        assert done.stderr == b"ivshmem-server: cannot write to standard output: No space left on device\n"
        reader, writer = os.pipe()
        os.close(reader)
        done = await trio.run_process(argv, stdout=writer, capture_stderr=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")


async def test_standard_streams_may_be_closed(tmp_path: Path) -> None:
    async with start_server(tmp_path, memfd=True, launcher=CLOSED) as server:
        names = {os.readlink(f"/proc/{server.program.pid}/fd/{fd}") for fd in range(3)}  # noqa: PTH115
        assert names == {"/dev/null"}
        (await Client.joined(server.socket)).close()


def test_help_names_every_option() -> None:
    out = run("--help").stdout
    short = ["-h", "-v", "-F", "-p", "-S", "-M", "-m", "-l", "-n"]
    long = (
        "verbose foreground pid-file socket-path shm-name shm-dir size vectors memfd hugetlb mode owner group"
    )
    long += " allow-uid allow-gid max-peers max-queued sticky fd log-format log-file print-qemu-args"
    long += " print-libvirt-xml version status-socket prealloc"
    for option in short + [f"--{name}" for name in long.split()]:
        assert re.search(rf"(?<![\w-]){option}\b", out), option


def test_version() -> None:
    assert run("--version").stdout == f"ivshmem-server (qemu-companion) {__version__}\n"


def test_daemon_listens_when_its_parent_exits_and_cleans_up(tmp_path: Path) -> None:
    with daemon(tmp_path, "-l", "1M", "-n", "2") as path:
        pid = int((tmp_path / "pid").read_text())
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert sock.recv(8) == bytes(8)
        assert os.getsid(pid) != os.getsid(0)
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}  # noqa: PTH115
        assert Path("/dev/shm", memory_name(tmp_path)).stat().st_size == 1 << 20
    assert list(tmp_path.iterdir()) == []
    assert not Path("/dev/shm", memory_name(tmp_path)).exists()


def test_daemon_that_cannot_start_fails_with_its_line(tmp_path: Path) -> None:
    assert "create the directory first" in one_line_error(run("-S", f"{tmp_path}/none/s", "--memfd"))
    failed = run("-S", f"{tmp_path}/s", "--memfd", "-p", f"{tmp_path}/none/pid")
    assert "give another with -p, or -F" in one_line_error(failed)
    assert list(tmp_path.iterdir()) == []


def test_second_server_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    with daemon(tmp_path) as path:
        pid = (tmp_path / "pid").read_text().strip()
        same_socket = run("-F", "-S", str(path), "--memfd")
        assert f"socket {path} is in use" in one_line_error(same_socket)
        same_memory = run("-F", "-S", f"{path}2", "-M", memory_name(tmp_path), "-l", "1M")
        assert f"/dev/shm/{memory_name(tmp_path)} is in use by another server (pid {pid})" in one_line_error(
            same_memory
        )
        assert Path("/dev/shm", memory_name(tmp_path)).stat().st_size == 4 << 20
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.recv(8)
            assert sock.recv(8) == bytes(8)  # still the first client: the others were never seen


async def test_server_starts_again_after_kill_9(tmp_path: Path) -> None:
    async with start_server(tmp_path, memfd=True) as server:
        server.program.kill()
        await server.program.wait()
        assert server.socket.exists()
    (tmp_path / "notify").unlink()
    async with start_server(tmp_path, memfd=True) as server:
        client = await Client.joined(server.socket)
        client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_server_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    async with start_server(tmp_path, "-n", "2") as server:
        clients = [await Client.joined(server.socket, 2) for _ in range(20)]
        os.kill(server.program.pid, number)
        with trio.fail_after(60):
            assert await server.program.wait() == 0
        assert not server.socket.exists()
        assert not server.shm.exists()
        assert server.program.output().endswith(f" ivshmem-server: ended by {number.name}; 20 connected\n")
        for client in clients:
            client.close()


async def test_impatient_user_does_not_interrupt_the_clean_up(tmp_path: Path) -> None:
    async with start_server(tmp_path) as server:
        while not server.program.ended:
            server.program.terminate()
        assert await server.program.wait() == 0
        assert not server.socket.exists()
        assert not server.shm.exists()


def test_daemon_cleans_up_when_it_is_ended_before_it_was_ready(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")  # opening it takes until somebody reads
    options = ["-S", f"{tmp_path}/socket", "-M", memory_name(tmp_path), "-p", f"{tmp_path}/pid"]
    with subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True) as parent:
        with socket.socket(socket.AF_UNIX) as sock:
            while sock.connect_ex(f"{tmp_path}/socket"):
                assert parent.poll() is None
            (pid,) = struct.unpack_from("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        until_asleep(pid)  # Python does not see a signal that comes just before a call that waits
        stop(pid)
        assert parent.stderr
        assert parent.stderr.read() == "ivshmem-server: the daemon died before it was ready\n"
    assert parent.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]
    assert not Path("/dev/shm", memory_name(tmp_path)).exists()


@pytest.mark.extended
async def test_flood_of_signals_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """From the moment on that there is something to clean up, be it half made."""
    path, shm = tmp_path / "socket", Path("/dev/shm") / memory_name(tmp_path)
    argv = [sys.executable, "-m", "ivshmem_server.program.server", "-F", "-S", str(path), "-M", shm.name]
    for _ in range(5):
        async with start(argv) as program:
            while not shm.exists():
                assert not program.ended
            while not program.ended:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(program.pid, number)
            assert await program.wait() == 0
            assert not shm.exists()
            assert not path.exists()
            assert "Traceback" not in program.output()
            assert len(program.output().splitlines()) == 2, "it listened, and it ended"


async def test_nohup_is_respected(tmp_path: Path) -> None:
    async with start_server(tmp_path, memfd=True, launcher=["nohup"]) as server:
        status = await trio.Path(f"/proc/{server.program.pid}/status").read_text()
        ignored = re.search(r"^SigIgn:\s(\w+)$", status, re.MULTILINE)
        assert ignored
        assert int(ignored[1], 16) & 1 << signal.SIGHUP - 1


async def test_sigusr1_logs_the_status(tmp_path: Path) -> None:
    async with start_server(tmp_path, "--log-format", "json") as server:
        os.kill(server.program.pid, signal.SIGUSR1)
        server.program.terminate()
        assert await server.program.wait() == 0
        record = json.loads(server.program.output().splitlines()[1])
        assert record["level"] == "info"
        assert record["status"]["memory"]["size"] == 4 << 20
        assert record["status"]["peers"] == []


async def test_json_log_says_who_was_refused_and_why(tmp_path: Path) -> None:
    options = ["--log-format", "json", "--allow-uid", str(os.getuid() + 1)]
    async with start_server(tmp_path, *options) as server:
        client = await Client.connect(server.socket)
        await client.stream.receive(8)
        assert await client.stream.receive(8) == (b"", [])
        client.close()
        record = json.loads(server.program.output().splitlines()[-1])
        assert record["event"] == "refused"
        assert record["reason"] == "not_allowed"
        assert (record["pid"], record["uid"]) == (os.getpid(), os.getuid())


def test_inherited_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(f"{tmp_path}/socket")
        listening.listen()
        number = listening.fileno()
        process = subprocess.Popen([*COMMAND, "-F", "--memfd", "--fd", str(number)], pass_fds=[number])
        try:
            client.connect(f"{tmp_path}/socket")
            assert client.recv(8) == bytes(8)
        finally:
            process.terminate()
            assert process.wait(60) == 0
    assert (tmp_path / "socket").exists(), "the socket is its opener's to remove"


def test_printed_qemu_arguments(tmp_path: Path) -> None:
    out = run("-S", f"{tmp_path}/a,b c", "-n", "4", "--print-qemu-args").stdout
    assert out == (
        f"-chardev 'socket,path={tmp_path}/a,,b c,id=ivshmem0' "
        "-device ivshmem-doorbell,chardev=ivshmem0,vectors=4\n"
    )


def test_printed_libvirt_xml(tmp_path: Path) -> None:
    out = run("-S", f"{tmp_path}/a'&<b>", "-n", "4", "--print-libvirt-xml").stdout
    shmem = ElementTree.fromstring(out)
    assert shmem.tag == "shmem"
    assert [(child.tag, child.attrib) for child in shmem] == [
        ("model", {"type": "ivshmem-doorbell"}),
        ("server", {"path": f"{tmp_path}/a'&<b>"}),
        ("msi", {"vectors": "4", "ioeventfd": "on"}),
    ]


def test_size_that_is_no_power_of_two_is_rounded_as_the_c_server_does(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with daemon(tmp_path, "-l", "3M", "--log-file", str(log)):
        assert Path("/dev/shm", memory_name(tmp_path)).stat().st_size == 4 << 20
    assert "3 MiB rounded up to 4 MiB" in log.read_text()

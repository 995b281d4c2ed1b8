"""Back-ends that serve, as programs: signals, logs, inherited sockets, and who else wants theirs."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.io import FdStream, connect
from protocol.vhost_user import Features, GetFeatures, GetProtocolFeatures, ProtocolFeature, ProtocolFeatures
from protocol.virtio.features import Feature
from tests.rig.programs import netns
from tests.rig.programs.backend import (
    BackendStartError,
    command,
    start_backend,
    start_program,
    until_printed,
)
from tests.rig.programs.hidden import NONE, launcher, with_hidden_proc
from tests.rig.programs.terminal import start_in_terminal
from tests.vhost_user.program.cli_program import OWN_DEVICE, SECONDS, refusal
from tests.vhost_user.raw_frontend import Frontend

if TYPE_CHECKING:
    from pathlib import Path

BUSY_DEVICE = '''
import logging
import os

import trio

from vhost_user import DeviceId, VirtioDevice


class Busy(VirtioDevice):
    """Waits in a thread for what never comes."""

    device_id = DeviceId.CONSOLE
    name = "busy"

    async def run_queue(self, queue):
        async for chain in queue:
            logging.getLogger("vhost_user").info("under way")
            await trio.to_thread.run_sync(os.read, os.pipe()[0], 1)
'''


async def until_written(path: Path, text: str) -> None:
    """Wait until a file is there and has this text."""
    with trio.fail_after(SECONDS):
        while not path.exists() or text not in path.read_text():  # noqa: ASYNC110 -- a process writes it
            await trio.sleep(0.01)


async def is_served(path: Path) -> bool:
    frontend = Frontend(await connect(str(path)))
    try:
        queue = await frontend.start()
        return any((await queue.exchange([], [64]))[0])
    finally:
        frontend.close()


async def test_serves_and_ends_on_sigterm(directory: Path) -> None:
    async with start_backend(directory, "rng") as backend:
        assert f"listening on {backend.socket}" in backend.program.output()
        assert await is_served(backend.socket)
        assert await is_served(backend.socket)
    assert not backend.socket.exists()


@with_hidden_proc
@pytest.mark.parametrize(
    "device",
    [
        ["rng"],
        ["blk", "--blk-file", "{}/disk", "--cache", "none"],
        ["console"],
        ["net", "--link", "--socket-count", "2"],
        ["vsock", "--guest-cid", "3", "--uds-path", "{}/vsock"],
        ["gpio", "--line", "lamp"],
        ["i2c", "--chip", "lm75@0x48"],
        ["input", "--keyboard"],
    ],
    ids=lambda device: device[0],
)
async def test_it_serves_where_proc_is_hidden(directory: Path, device: list[str]) -> None:
    with (directory / "disk").open("wb") as disk:
        disk.truncate(1 << 20)
    name, *options = (option.format(directory) for option in device)
    path = directory / "socket"
    argv = [*launcher(NONE), *command(name, "--socket-path", str(path), *options)]
    async with start_program(directory, argv, name) as program:
        paths = [directory / "socket0", directory / "socket1"] if name == "net" else [path]
        for each in paths:
            frontend = Frontend(await connect(str(each)))
            await frontend.negotiate()
            frontend.close()
            assert f"listening on {each}\n" in program.output()
        assert "warning" not in program.output()


@with_hidden_proc
@pytest.mark.skipif(bool(netns.unavailable()), reason=netns.unavailable())
async def test_tap_is_served_where_proc_is_hidden(directory: Path) -> None:
    argv = command("net", "--socket-path", f"{directory}/socket", "--tap", "tap0")
    async with start_program(directory, ["unshare", "--net", "--", *launcher(NONE), *argv], "net") as program:
        assert program.output().count("\n") == 1  # that it listens


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_end_is_clean_with_a_front_end_connected(directory: Path, number: signal.Signals) -> None:
    async with start_backend(directory, "rng") as backend:
        frontend = Frontend(await connect(str(backend.socket)))
        queue = await frontend.start()
        await queue.exchange([], [64])
        os.kill(backend.program.pid, number)
        with trio.fail_after(SECONDS):
            assert await backend.program.wait() == 0
        assert backend.program.output().endswith(f": ended by {number.name}\n")
        frontend.close()


async def test_flood_of_signals_leaves_nothing(directory: Path) -> None:
    control = directory / "control"
    options = ("--chip", "lm75@0x48", "--control", str(control))
    for _ in range(3):
        async with start_backend(directory, "i2c", *options) as backend:
            assert control.is_socket()
            while not backend.program.ended:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(backend.program.pid, number)
            assert await backend.program.wait() == 0
            assert not backend.socket.exists()
            assert not control.exists()


async def test_nohup_is_respected(directory: Path) -> None:
    argv = ["nohup", *command("rng", "--socket-path", str(directory / "s"))]
    async with start_program(directory, argv, "rng") as program:
        os.kill(program.pid, signal.SIGHUP)
        assert await is_served(directory / "s")
        program.terminate()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0


async def test_rotated_log_goes_on_and_no_guest_notices(directory: Path) -> None:
    log, old = directory / "log", directory / "log.1"
    async with start_backend(directory, "rng", "-v", "--log-file", str(log)) as backend:
        frontend = Frontend(await connect(str(backend.socket)))
        queue = await frontend.start()
        log.rename(old)
        os.kill(backend.program.pid, signal.SIGHUP)
        await until_written(log, "")
        assert any((await queue.exchange([], [64]))[0])
        frontend.close()
    assert log.read_text().endswith(": ended by SIGTERM\n")
    assert "SET_VRING_KICK" in old.read_text()


async def test_log_of_a_program_under_nohup_is_rotated(directory: Path) -> None:
    log = directory / "log"
    argv = ["nohup", *command("rng", "--socket-path", str(directory / "s"), "--log-file", str(log))]
    async with start_program(directory, argv, "rng") as program:
        log.unlink()
        os.kill(program.pid, signal.SIGHUP)
        await until_written(log, "")
        assert await is_served(directory / "s")


async def test_program_ends_with_its_terminal(directory: Path) -> None:
    log = directory / "log"
    argv = command("rng", "--socket-path", str(directory / "s"), "--log-file", str(log))
    async with start_in_terminal(argv) as (program, terminal):
        await until_written(log, "listening on")
        terminal.close()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0
    assert log.read_text().endswith(": ended by SIGHUP\n")


async def test_failed_start_is_in_the_log(directory: Path) -> None:
    log = directory / "log"
    line = refusal("run", "rng", "-s", str(directory / "no/such"), "--log-file", str(log))
    (logged,) = log.read_text().splitlines()
    assert logged.endswith(f" error: cannot start: {line.removeprefix('vhost-user run rng: ')}")
    assert "give another --log-file" in refusal("run", "rng", "-s", "s", "--log-file", str(directory))


async def test_verbose_logs_each_message(directory: Path) -> None:
    async with start_backend(directory, "rng", "-v") as backend:
        assert await is_served(backend.socket)
        assert "GET_FEATURES" in backend.requests()
        assert "SET_VRING_NUM index=0 num=16 need_reply" in backend.requests()


async def test_features_are_withheld(directory: Path) -> None:
    options = ("--without", "RING_PACKED", "--without", "EVENT_IDX", "--without", "CONFIGURE_MEM_SLOTS")
    async with start_backend(directory, "rng", *options) as backend:
        frontend = Frontend(await connect(str(backend.socket)))
        offered = (await frontend.ask(Features, GetFeatures())).features
        assert not offered & (Feature.RING_PACKED | Feature.EVENT_IDX)
        assert Feature.INDIRECT_DESC in offered
        protocol = (await frontend.ask(ProtocolFeatures, GetProtocolFeatures())).features
        assert ProtocolFeature.CONFIGURE_MEM_SLOTS not in protocol
        assert ProtocolFeature.INBAND_NOTIFICATIONS in protocol
        frontend.close()


async def test_json_log(directory: Path) -> None:
    async with start_backend(directory, "rng", "--log-format", "json") as backend:
        lines = [json.loads(line) for line in backend.program.output().splitlines()]
    assert lines[0]["message"].startswith("listening on")
    assert lines[0]["level"] == "info"


async def test_listening_socket_is_inherited(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "s"))
        sock.listen()
        argv = command("rng", "--fd", str(sock.fileno()))
        async with start_program(directory, argv, "rng", pass_fds=[sock.fileno()]):
            assert await is_served(directory / "s")
            assert await is_served(directory / "s")


async def test_connected_socket_is_inherited_and_served_to_its_end(directory: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        argv = command("rng", "--fd", str(theirs.fileno()))
        async with start_program(directory, argv, "rng", pass_fds=[theirs.fileno()]) as program:
            theirs.close()
            frontend = Frontend(FdStream(ours))
            queue = await frontend.start()
            assert any((await queue.exchange([], [64]))[0])
            frontend.close()
            with trio.fail_after(SECONDS):
                assert await program.wait() == 0


async def test_killed_back_end_is_started_again_on_its_socket(directory: Path) -> None:
    async with start_backend(directory, "rng") as first:
        first.program.kill()
        await first.program.wait()
        assert first.socket.is_socket()
    async with start_backend(directory, "rng") as second:
        assert await is_served(second.socket)


async def test_second_front_end_is_told_of_in_the_log(directory: Path) -> None:
    async with start_backend(directory, "rng") as backend:
        first = Frontend(await connect(str(backend.socket)))
        await first.start()
        second = Frontend(await connect(str(backend.socket)))
        await until_printed(backend.program, "another front-end waits until this one has left")
        first.close()
        await second.start()
        second.close()


async def test_source_without_bytes_is_told_of_in_the_log(directory: Path) -> None:
    (directory / "empty").touch()
    async with start_backend(directory, "rng", "-f", str(directory / "empty")) as backend:
        frontend = Frontend(await connect(str(backend.socket)))
        queue = await frontend.start()
        queue.submit([], [4])
        await until_printed(backend.program, "empty has no bytes: the guest waits")
        (directory / "empty").write_bytes(b"abcd")
        assert await queue.wait() == [[b"abcd"]]
        frontend.close()


async def test_socket_in_use_is_said_in_one_line(directory: Path) -> None:
    async with start_backend(directory, "rng") as backend:
        with pytest.raises(BackendStartError, match="is in use by another program; stop it"):
            async with start_program(directory, command("rng", "-s", str(backend.socket)), "second"):
                pass


def access(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mode & 0o777, status.st_uid, status.st_gid


@pytest.fixture
def other() -> int:
    """Another user and group than ours, where we may give them a socket."""
    return 65534 if os.getuid() == 0 else os.getuid()


async def test_socket_is_of_whom_the_front_end_runs_as(directory: Path, other: int) -> None:
    """The control socket stays ours: who may connect to that can do anything with the device."""
    group = other if os.getuid() == 0 else os.getgid()
    options = ("--mode", "0660", "--owner", str(other), "--group", str(group))
    control = directory / "control"
    async with start_backend(
        directory, "i2c", "--chip", "lm75@0x48", "--control", str(control), *options
    ) as backend:
        assert access(backend.socket) == (0o660, other, group)
        assert access(control) == (0o600, os.getuid(), os.getgid())


async def test_each_of_several_sockets_has_the_mode(directory: Path) -> None:
    argv = command("i2c", "--chip", "lm75@0x48", "-s", str(directory / "s"), "-c", "2", "--mode", "0604")
    async with start_program(directory, argv, "i2c"):
        assert [access(directory / f"s{number}")[0] for number in range(2)] == [0o604, 0o604]


async def test_socket_of_each_guest_has_the_mode_and_not_those_of_its_host(directory: Path) -> None:
    """A guest's connections are for host programs, which have nothing to do with whom QEMU runs as."""
    vms = [f"guest-cid={cid},socket={directory}/s{cid},uds-path={directory}/u{cid}" for cid in (3, 4)]
    options = [word for vm in vms for word in ("--vm", vm)]
    async with start_program(directory, command("vsock", *options, "--mode", "0"), "vsock"):
        assert [access(directory / f"s{cid}")[0] for cid in (3, 4)] == [0, 0]
        assert all(access(directory / f"u{cid}")[0] & 0o700 for cid in (3, 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-s", "{}/s", "--mode", "rw"], "argument --mode: 'rw' is not a mode; write it in octal, as 0660"),
        (["-s", "{}/s", "--owner", "no-such-user"], "argument --owner: there is no user 'no-such-user'"),
        (["-s", "{}/s", "--group", "no-such-group"], "argument --group: there is no group 'no-such-group'"),
        (
            ["--fd", "0", "--mode", "0660"],
            "--mode: for a socket that we make; give --socket-path, or leave it",
        ),
        (
            ["--connect", "/a", "--owner", "0", "--group", "0"],
            "--owner and --group: for a socket that we make",
        ),
    ],
)
async def test_access_that_cannot_be_given_is_said_in_one_line(
    directory: Path, options: list[str], said: str
) -> None:
    assert said in refusal("run", "rng", *(option.format(directory) for option in options), code=2)


async def test_owner_that_only_root_can_give_is_said_in_one_line(directory: Path) -> None:
    argv = command("rng", "-s", str(directory / "s"), "--owner", "65534")
    without_privilege = ["setpriv", "--bounding-set=-chown"] if os.getuid() == 0 else []
    result = await trio.run_process([*without_privilege, *argv], capture_stderr=True, check=False)
    assert result.returncode == 1
    assert result.stderr.decode() == (
        f"vhost-user run rng: cannot listen on {directory}/s: owner, group or mode cannot be set: "
        "Operation not permitted; run it as root, or leave out --owner and --group; "
        "a group that you are in needs no root\n"
    )
    assert not (directory / "s").exists()


async def test_ones_own_device(directory: Path) -> None:
    (directory / "mine.py").write_text(OWN_DEVICE)
    argv = ["env", "-C", str(directory), *command("mine:Hello", "-s", str(directory / "s"))]
    async with start_program(directory, argv, "mine"):
        frontend = Frontend(await connect(str(directory / "s")))
        queue = await frontend.start()
        assert await queue.exchange([], [8]) == [b"hello"]
        frontend.close()


async def test_second_signal_ends_a_program_whose_requests_never_end(directory: Path) -> None:
    (directory / "mine.py").write_text(BUSY_DEVICE)
    argv = ["env", "-C", str(directory), *command("mine:Busy", "-s", str(directory / "s"))]
    async with start_program(directory, argv, "mine") as program:
        frontend = Frontend(await connect(str(directory / "s")))
        queue = await frontend.start()
        queue.submit([], [8])
        await until_printed(program, "under way")
        os.kill(program.pid, signal.SIGTERM)
        await until_printed(program, "another signal ends the program at once")
        os.kill(program.pid, signal.SIGTERM)
        with trio.fail_after(SECONDS):
            assert await program.wait() == -signal.SIGTERM
        frontend.close()


async def test_code_of_ones_own_can_end_the_program(directory: Path) -> None:
    """As anywhere in Python: with its code, and without a traceback."""
    source = OWN_DEVICE.replace(
        "async for chain in queue:", "async for chain in queue:\n            raise SystemExit(3)"
    )
    (directory / "mine.py").write_text(source)
    path = directory / "s"
    argv = ["env", "-C", str(directory), *command("mine:Hello", "-s", str(path))]
    async with start_program(directory, argv, "mine") as program:
        frontend = Frontend(await connect(str(path)))
        queue = await frontend.start()
        queue.submit([], [8])
        with trio.fail_after(SECONDS):
            assert await program.wait() == 3
        frontend.close()
        assert "Traceback" not in program.output()
    assert not path.exists()


SORE_LOSER = '''
from vhost_user import DeviceId, VirtioDevice


class SoreLoser(VirtioDevice):
    """Fails when it is told to end."""

    device_id = DeviceId.CONSOLE
    name = "sore"

    async def run_queue(self, queue):
        try:
            async for chain in queue:
                chain.complete()
        finally:
            raise RuntimeError("I was not done")
'''


async def test_end_is_clean_although_the_device_fails_at_it(directory: Path) -> None:
    """What it raises is logged, as at any other time."""
    (directory / "mine.py").write_text(SORE_LOSER)
    argv = ["env", "-C", str(directory), *command("mine:SoreLoser", "-s", str(directory / "s"))]
    async with start_program(directory, argv, "mine") as program:
        frontend = Frontend(await connect(str(directory / "s")))
        queue = await frontend.start()
        await queue.exchange([], [8])
        program.terminate()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0
        frontend.close()
        assert program.output().count("the device failed, which ends the connection") == 1
        assert program.output().count("RuntimeError: I was not done") == 1

"""Listening sockets: whose path it is, who may connect, and who is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.io import FdStream, Listener, SocketInUseError, connect, inherited_listener, listen
from protocol.io.listener import MAX_PATH
from tests.protocol.io import programs, race
from tests.protocol.io.child import run_child, running_child
from tests.protocol.io.programs import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "sock"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    with listen(str(path)) as made:
        yield made


def leave_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """Leave a socket there that nobody has open."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


def is_socket(path: Path) -> bool:
    return path.is_socket()


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def assert_serves(listener: Listener, path: Path) -> None:
    """Assert that who connects to the path reaches the listener."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_greet, listener)
            with await connect(str(path)) as client:
                assert await client.receive_exactly(5) == (b"hello", [])


async def _greet(listener: Listener) -> None:
    with await listener.accept() as stream:
        await stream.send(b"hello")


# Whose path it is


async def test_listen_on_a_free_path(path: Path) -> None:
    with listen(str(path)) as listener:
        assert listener.path == str(path)
        assert not os.get_inheritable(listener.fileno())
        await assert_serves(listener, path)
    assert not is_socket(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_stale_socket_is_replaced(path: Path, kind: socket.SocketKind) -> None:
    leave_stale(path, kind)
    with listen(str(path)) as listener:
        await assert_serves(listener, path)


async def test_socket_of_a_killed_process_is_replaced(path: Path) -> None:
    with running_child(programs.listen_until_killed, str(path)) as child:
        child.kill()
    assert is_socket(path)
    with listen(str(path)) as listener:
        await assert_serves(listener, path)


def test_live_server_is_left_alone_and_notices_nothing(path: Path, listener: Listener) -> None:
    inode = path.stat().st_ino
    with pytest.raises(SocketInUseError, match="another server listens there") as caught:
        listen(str(path))
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
    with pytest.raises(BlockingIOError):
        listener.accept_nowait()
    assert path.stat().st_ino == inode


def test_live_server_with_a_full_accept_queue_is_left_alone(path: Path) -> None:
    with listen(str(path), backlog=0) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with pytest.raises(SocketInUseError):
            listen(str(path))
        listener.accept_nowait().close()


def test_live_server_of_another_process_is_left_alone(path: Path) -> None:
    with running_child(programs.listen_until_killed, str(path)), pytest.raises(SocketInUseError):
        listen(str(path))
    assert path.is_socket()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_that_is_bound_is_in_use_though_nobody_listens_yet(
    path: Path, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        with pytest.raises(SocketInUseError):
            listen(str(path))
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "symbolic link to nowhere"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    before = path.lstat()
    with pytest.raises(OSError, match="something that is no socket is there; remove it") as caught:
        listen(str(path))
    assert caught.value.filename == str(path)
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)


def test_one_of_many_that_start_at_once_wins(path: Path) -> None:
    """Each finds the socket of a dead server there. The winner is the one that clients reach."""
    leave_stale(path)
    for winners, refused in run_child(race.start_many, str(path), 12, 20):
        assert (winners, refused) == (["reached"], 11)


def test_one_of_many_wins_where_none_may_read_the_directory(directory: Path, path: Path) -> None:
    """A directory may be written to all the same, and then cannot be locked the usual way."""
    leave_stale(path)
    if os.getuid() == 0:
        for each in (directory, path):
            os.chown(each, NOBODY, NOBODY)
    directory.chmod(0o300)
    outcomes = run_child(race.start_many_as_nobody, str(path), 12, 20)
    directory.chmod(0o700)
    for winners, refused in outcomes:
        assert (winners, refused) == (["reached"], 11)


def test_strangers_lock_keeps_nobody_from_starting(
    directory: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.io.listener.LOCK_TRIES", 2)
    with OwnedFd(os.open(directory, os.O_RDONLY | os.O_CLOEXEC)) as stranger:
        fcntl.flock(stranger.fileno(), fcntl.LOCK_EX)
        with listen(str(path)) as listener:
            assert listener.path == str(path)


def test_close_leaves_what_another_has_put_there(path: Path) -> None:
    listener = listen(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.is_socket()


def test_close_where_the_path_has_gone(path: Path) -> None:
    with listen(str(path)):
        path.unlink()
    assert not path.exists()


def test_second_close_leaves_the_next_server_alone(path: Path) -> None:
    first = listen(str(path))
    first.close()
    with listen(str(path)):
        first.close()
        assert path.is_socket()


# Who may connect


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o660, 0o666, 0o777])
def test_mode_is_as_asked_whatever_the_umask(path: Path, umask: None, mode: int) -> None:
    with listen(str(path), mode=mode):
        assert permissions(path) == mode


def test_without_a_mode_the_umask_decides(path: Path, umask: None) -> None:
    with listen(str(path)):
        assert permissions(path) == 0o750


def test_owner_and_group(path: Path) -> None:
    """Only root can give a socket away; others name themselves."""
    owner = NOBODY if os.getuid() == 0 else os.getuid()
    group = NOBODY if os.getuid() == 0 else os.getgid()
    with listen(str(path), owner=owner, group=group, mode=0o660):
        assert (path.stat().st_uid, path.stat().st_gid, permissions(path)) == (owner, group, 0o660)


def test_group_alone(path: Path) -> None:
    group = NOBODY if os.getuid() == 0 else os.getgid()
    with listen(str(path), group=group):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), group)


def test_nobody_connects_before_the_socket_is_theirs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def knock(name: str) -> None:
        with socket.socket(socket.AF_UNIX) as early:
            if early.connect_ex(str(path)) == errno.ECONNREFUSED:
                refused.append(name)

    def knock_after(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> None:
            real(*arguments, **options)
            knock(f"after {name}")

        monkeypatch.setattr(os, name, call)

    knock_after("chown")
    knock_after("chmod")
    with listen(str(path), mode=0o666, group=os.getgid()):
        assert refused == ["after chown", "after chmod"]


def test_failing_owner_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError):
        listen(str(path), owner=0)
    assert not path.exists()


# Paths that will not do


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH + 1])
def test_longest_path(directory: Path, length: int) -> None:
    path = directory / "x"
    path = path.with_name("x" * (length - len(str(directory)) - 1))
    if length == MAX_PATH:
        with listen(str(path)):
            assert path.is_socket()
    else:
        with pytest.raises(OSError, match=f"at most {MAX_PATH} bytes") as caught:
            listen(str(path))
        assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(path))


def test_path_length_counts_bytes(directory: Path) -> None:
    with pytest.raises(OSError, match="at most"):
        listen(str(directory / ("é" * (MAX_PATH // 2))))


def test_no_path_at_all() -> None:
    with pytest.raises(OSError, match="a socket needs a path"):
        listen("")


def test_missing_directory(directory: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        listen(str(directory / "missing/sock"))
    assert caught.value.filename == str(directory / "missing")


def test_directory_that_is_none(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(NotADirectoryError):
        listen(str(directory / "file/sock"))


def test_directory_that_we_may_not_write_to(directory: Path, path: Path) -> None:
    directory.chmod(0o555)
    number, text = run_child(programs.listen_as_nobody, str(path))
    directory.chmod(0o700)
    assert (number, text) == (errno.EACCES, f"[Errno 13] Permission denied: '{path}'")


@pytest.mark.skipif(os.getuid() != 0, reason="needs a socket of another user, which root can make")
def test_socket_that_we_may_not_connect_to(directory: Path, path: Path) -> None:
    leave_stale(path)
    path.chmod(0o600)
    directory.chmod(0o777)
    number, text = run_child(programs.listen_as_nobody, str(path))
    assert number == errno.EACCES
    assert "a socket is there that we may not connect to" in text
    assert path.is_socket()


# Accepting


async def test_accept_waits(listener: Listener, path: Path, nursery: trio.Nursery) -> None:
    accepted: list[FdStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    assert accepted == []
    with await connect(str(path)):
        await wait_all_tasks_blocked()
        [stream] = accepted
        stream.close()


async def test_accepted_socket_is_not_inherited(listener: Listener, path: Path) -> None:
    with await connect(str(path)), await listener.accept() as stream:
        assert not os.get_inheritable(stream.fileno())


@pytest.mark.parametrize("attempt", range(20))
async def test_accept_goes_on_where_another_process_was_quicker(
    listener: Listener, path: Path, attempt: int
) -> None:
    """It shares the listening socket, as with socket activation. Two connections, one for each."""
    both = trio.Event()
    accepted: list[str] = []

    async def accept(who: Listener, name: str) -> None:
        (await who.accept()).close()
        accepted.append(name)
        if len(accepted) == 2:
            both.set()

    with inherited_listener(os.dup(listener.fileno())) as other, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, listener, "one")
            nursery.start_soon(accept, other, "other")
            await wait_all_tasks_blocked()
            with await connect(str(path)):
                await wait_all_tasks_blocked()
                assert len(accepted) == 1
            with await connect(str(path)):
                await both.wait()
    assert sorted(accepted) == ["one", "other"]


def test_accept_at_the_limit_of_open_files(path: Path) -> None:
    """It raises; the connection waits, and is accepted later."""
    assert run_child(programs.accept_at_the_limit, str(path)) == [errno.EMFILE, True]


async def test_close_wakes_the_accepting_task(listener: Listener, nursery: trio.Nursery) -> None:
    ended = trio.Event()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        ended.set()

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    listener.close()
    with trio.fail_after(10):
        await ended.wait()


async def test_closed_listener(listener: Listener) -> None:
    listener.close()
    for attempt in (listener.accept(), listener.wait_readable()):
        with pytest.raises(trio.ClosedResourceError):
            await attempt
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_nowait()


# Inherited


async def test_inherited_listener_serves_and_leaves_its_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        os.set_inheritable(sock.fileno(), True)
        with inherited_listener(sock.detach()) as listener:
            assert listener.path == str(path)
            assert not os.get_inheritable(listener.fileno())
            await assert_serves(listener, path)
    assert is_socket(path)


def test_inherited_listener_without_a_path() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0qemu-companion-test")
        sock.listen()
        with inherited_listener(sock.detach()) as listener:
            assert listener.path == "@qemu-companion-test"


def not_listening(_: Path) -> socket.socket:
    return socket.socket(socket.AF_UNIX)


def datagram(_: Path) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def sequential(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(directory / "sock"))
    sock.listen()
    return sock


def internet(_: Path) -> socket.socket:
    sock = socket.socket(socket.AF_INET)
    sock.listen()
    return sock


@pytest.mark.parametrize("make", [not_listening, datagram, sequential, internet])
def test_other_socket_is_refused_and_stays_its_owners(
    make: Callable[[Path], socket.socket], directory: Path
) -> None:
    with make(directory) as sock:
        with pytest.raises(
            ValueError, match=f"descriptor {sock.fileno()} is no listening UNIX stream socket"
        ):
            inherited_listener(sock.fileno())
        os.fstat(sock.fileno())


def test_descriptor_that_is_no_socket_is_refused_and_stays_its_owners() -> None:
    with Path("/dev/null").open() as file:
        with pytest.raises(ValueError, match=f"descriptor {file.fileno()} is no socket"):
            inherited_listener(file.fileno())
        os.fstat(file.fileno())


@pytest.mark.parametrize("number", [-1, 10**6])
def test_number_that_is_no_descriptor(number: int) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        inherited_listener(number)


# Activated by systemd


def test_systemd_hands_over_a_listener(path: Path) -> None:
    assert run_child(programs.activate, str(path), {"LISTEN_FDS": "1", "LISTEN_PID": "own"}) == str(path)


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "own"}],
)
def test_systemd_hands_over_nothing_to_us(path: Path, environment: dict[str, str]) -> None:
    assert run_child(programs.activate, str(path), environment) is None


def test_systemd_hands_over_too_much(path: Path) -> None:
    text = run_child(programs.activate, str(path), {"LISTEN_FDS": "2", "LISTEN_PID": "own"})
    assert text == "systemd handed over 2 sockets; one was expected (one ListenStream=)"


def test_systemd_hands_over_something_else() -> None:
    text = run_child(programs.activate, "", {"LISTEN_FDS": "1", "LISTEN_PID": "own"})
    assert text == "descriptor 3 is no listening UNIX stream socket"

"""Listening sockets: whose path it is, who may connect, and who is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from protocol.fds import OwnedFd
from protocol.io import Listener, SocketInUseError, listen
from protocol.io.stream import MAX_PATH
from tests.protocol.io import race
from tests.protocol.io.serving import assert_serves, is_socket
from tests.protocol.program import programs
from tests.protocol.program.child import run_child, running_child
from tests.protocol.program.programs import NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def leave_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """Leave a socket there that nobody has open."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


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
    with pytest.raises(OSError, match="something that is not a socket is there") as caught:
        listen(str(path))
    assert caught.value.filename == str(path)
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)


def test_one_of_many_that_start_at_once_wins(path: Path) -> None:
    """Each finds the socket of a dead server there. The winner is the one that clients reach."""
    leave_stale(path)
    assert run_child(race.start_many, str(path), 8, 3) == [[["reached"], 7]] * 3


def test_one_of_many_wins_where_none_may_read_the_directory(directory: Path, path: Path) -> None:
    """A directory may be written to all the same, and then cannot be locked the usual way."""
    leave_stale(path)
    if os.getuid() == 0:
        for each in (directory, path):
            os.chown(each, NOBODY, NOBODY)
    directory.chmod(0o300)
    outcomes = run_child(race.start_many_as_nobody, str(path), 8, 3)
    directory.chmod(0o700)
    assert outcomes == [[["reached"], 7]] * 3


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


@pytest.mark.skipif(
    os.getuid() != 0, reason="needs a directory that nobody may write to, which root can make"
)
def test_owner_that_we_may_not_set_leaves_nothing(directory: Path, path: Path) -> None:
    directory.chmod(0o777)
    number, text = run_child(programs.listen_as_nobody, str(path), 0)
    assert number == errno.EPERM
    cause, remedy = text.split("; ", 1)
    assert cause == f"[Errno 1] owner, group or mode cannot be set: Operation not permitted: '{path}'"
    assert remedy.startswith("run it as root, or leave out --owner and --group")
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
    assert number == errno.EEXIST
    assert "a socket is there that we may not connect to, of user 0" in text
    assert "ask its owner to remove it, or choose another path" in text
    assert path.is_socket()


@pytest.mark.skipif(os.getuid() != 0, reason="needs a socket of another user, which root can make")
def test_socket_of_another_user_in_a_sticky_directory(directory: Path, path: Path) -> None:
    leave_stale(path)
    path.chmod(0o666)
    directory.chmod(0o1777)
    number, text = run_child(programs.listen_as_nobody, str(path))
    assert number == errno.EPERM
    assert "a socket is left there that only its owner, user 0, or root may remove" in text
    assert "ask its owner to remove it, or choose another path" in text
    assert path.is_socket()

"""The lock on a disk's file, beside QEMU's own programs, and who has it while a guest migrates."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.program.command_line import UserError
from protocol.virtio.features import Feature
from tests.rig.programs import process
from tests.rig.programs.backend import BackendStartError, command, start_backend
from tests.vhost_user.frontend.storage_daemon import fill_disk, storage_daemon
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, attached
from vhost_user.devices.blk.device import Blk
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.locking import _DOES, ImageInUseError, ImageLock, _Use

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 60
READ = b"\0" * 16
REMEDY = "end that, or give --incoming if a guest is to be migrated from there"

READER, WRITER = ["--read-only"], list[str]()


@pytest.fixture
def image(directory: Path) -> Path:
    fill_disk(directory)
    return directory / "disk"


@contextmanager
def lock(image: Path, *, read_only: bool = False, insist: bool = False) -> Iterator[ImageLock]:
    with closing(open_disk(str(image), read_only=read_only)) as disk:
        yield ImageLock(disk, str(image), read_only=read_only, insist=insist)


def refusal(image: Path, *options: str) -> str:
    """Return the line with which a back-end does not start."""
    argv = command("blk", "--socket-path", f"{image}.sock", "--blk-file", str(image), *options)
    (line,) = failure(argv).splitlines()
    return line


def failure(argv: list[str]) -> str:
    """Return what a program prints that fails."""
    result = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 1
    return result.stderr


# Who goes with whom


@pytest.mark.qemu
async def test_back_end_is_refused_what_a_storage_daemon_writes_to(image: Path) -> None:
    async with storage_daemon(image.parent):
        told = f"vhost-user run blk: {image} is in use by another program that writes to it"
        assert refusal(image) == f"{told}, or lets nobody write; {REMEDY}"
        assert refusal(image, "--read-only") == f"{told}; {REMEDY}"
        async with start_backend(image.parent, "blk", "--blk-file", str(image), "--locking", "off"):
            pass


@pytest.mark.qemu
@pytest.mark.parametrize("options", [[], ["--read-only"]])
async def test_storage_daemon_is_refused_what_a_back_end_uses(image: Path, options: list[str]) -> None:
    async with start_backend(image.parent, "blk", "--blk-file", str(image), *options):
        argv = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={image}"]
        argv += [
            "--export",
            f"vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={image}.q",
        ]
        assert 'Failed to get "' in failure(argv)


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [(READER, READER, True), (READER, WRITER, False), (WRITER, READER, False), (WRITER, WRITER, False)],
)
async def test_back_ends_share_a_disk_that_none_writes_to(
    image: Path, first: list[str], second: list[str], fits: bool
) -> None:
    async with start_backend(image.parent, "blk", "--blk-file", str(image), *first):
        if fits:
            async with start_backend(image.parent, "blk", "--blk-file", str(image), *second, name="other"):
                pass
        else:
            assert refusal(image, *second).endswith(REMEDY)
    async with start_backend(image.parent, "blk", "--blk-file", str(image), *second):
        pass


@pytest.mark.qemu
async def test_qemu_and_a_back_end_refuse_each_other(image: Path) -> None:
    argv = ["qemu-system-x86_64", "-M", "q35", "-display", "none", "-S", "-nodefaults", "-monitor", "none"]
    argv += ["-drive", f"file={image},if=virtio,format=raw"]
    async with start_backend(image.parent, "blk", "--blk-file", str(image)):
        assert 'Failed to get "write" lock' in failure(argv)
    async with process.start(argv) as qemu:
        with lock(image) as ours, trio.fail_after(SECONDS):
            while not ours._is_taken(_DOES + _Use.WRITE):  # noqa: ASYNC110 -- another process takes it
                await trio.sleep(0.01)
        assert refusal(image).endswith(REMEDY)
        qemu.kill()


async def test_killed_back_end_has_no_lock(image: Path) -> None:
    async with start_backend(image.parent, "blk", "--blk-file", str(image)) as backend:
        with pytest.raises(BackendStartError, match="is in use by another program"):
            async with start_backend(image.parent, "blk", "--blk-file", str(image), name="other"):
                pass
        backend.program.kill()
        await backend.program.wait()
    async with start_backend(image.parent, "blk", "--blk-file", str(image)):
        pass


# File systems without locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_that_cannot_be_locked_is_used_unless_the_user_insists(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", cannot)
    with lock(image) as one, lock(image) as other:
        one.take()
        other.take()
    with lock(image, insist=True) as insisting, pytest.raises(UserError, match="give --locking off"):
        insisting.take()


# Migration


async def test_lock_is_handed_over_with_the_guest_and_back(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (
        Blk(disk := open_disk(str(image)), lock=ImageLock(disk, str(image), read_only=False)) for _ in "12"
    )
    with here, there, lock(image) as third:
        async with attached(here) as source, attached(there) as target:
            queue = await source.start()
            with pytest.raises(ImageInUseError):
                third.take()
            await target.negotiate()
            await target.share_memory()
            arriving = target.queue()
            await arriving.start()
            await wait_all_tasks_blocked()
            arriving.submit([READ], [512, 1])
            assert await queue.exchange([READ], [512, 1])
            assert arriving.collect() == []
            assert "queue 0 waits: " in caplog.text

            await source.set_features(DEFAULT_FEATURES | Feature.LOG_ALL | Feature.PROTOCOL_FEATURES)
            await queue.stop()
            ((data, status),) = await arriving.wait()
            assert (data, status) == (image.read_bytes()[:512], b"\0")
            with pytest.raises(ImageInUseError):
                third.take()


async def test_lock_is_kept_while_a_guest_is_paused_or_reconnects(image: Path) -> None:
    disk = open_disk(str(image))
    with Blk(disk, lock=ImageLock(disk, str(image), read_only=False)) as blk, lock(image) as other:
        async with attached(blk) as frontend:
            queue = await frontend.start()
            await queue.stop()
            with pytest.raises(ImageInUseError):
                other.take()
        with pytest.raises(ImageInUseError):
            other.take()

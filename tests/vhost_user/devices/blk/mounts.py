"""File systems that differ in what O_DIRECT needs, mounted in a directory for the length of a block."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.devices.blk.loop_devices import loop_device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def _mounted(directory: Path, kind: str, *options: str) -> Iterator[Path]:
    """Mount a new file system of that kind for the length of the block; skip where it cannot be had."""
    if os.geteuid():
        pytest.skip("only root can mount")
    point = directory / "mounted"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", kind, *options, str(point)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        pytest.skip(f"no {kind} can be had here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=60)


@contextlib.contextmanager
def _on_device(directory: Path, kind: str, sector_size: int) -> Iterator[Path]:
    """Make a file system on a block device with such sectors, and mount it."""
    device_image = directory / "device"
    with device_image.open("wb") as file:
        file.truncate(320 << 20)
    with loop_device(device_image, sector_size=sector_size) as device:
        try:
            subprocess.run([f"mkfs.{kind}", "-q", device], check=True, timeout=60, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"no mkfs.{kind} here")
        with _mounted(directory, kind, device) as point:
            yield point


@contextlib.contextmanager
def tmpfs(directory: Path) -> Iterator[Path]:
    """One that says nothing of alignment, and needs none."""
    with _mounted(directory, "tmpfs", "none") as point:
        yield point


@contextlib.contextmanager
def overlay(directory: Path) -> Iterator[Path]:
    """One on top of another, and needs what that one does."""
    for name in ("lower", "upper", "work"):
        (directory / name).mkdir()
    layers = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    with _mounted(directory, "overlay", "-o", layers, "none") as point:
        yield point


def btrfs(directory: Path) -> contextlib.AbstractContextManager[Path]:
    """One that goes through the page cache by itself for what is not aligned."""
    return _on_device(directory, "btrfs", 512)


def ext4(directory: Path) -> contextlib.AbstractContextManager[Path]:
    """One that refuses what is not aligned to 4096 bytes."""
    return _on_device(directory, "ext4", 4096)


def xfs(directory: Path) -> contextlib.AbstractContextManager[Path]:
    """Another one that does."""
    return _on_device(directory, "xfs", 4096)

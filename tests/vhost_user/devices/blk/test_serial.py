"""Serial numbers of disks: each has its own, and keeps it."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.devices.blk import chains as driver
from tests.vhost_user.devices.blk.loop_devices import loop_device
from vhost_user.devices.blk.device import Blk
from vhost_user.devices.blk.disk import open_disk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def serial(path: Path | str, *, direct: bool = False) -> str:
    """Return what a guest is told."""
    request = driver.get_id()
    with closing(Blk(open_disk(str(path), direct=direct))) as blk:
        blk._executor.serve(request)
    return request.data.rstrip(b"\0").decode("ascii")


def test_serial_is_one_that_udev_makes_a_link_of(image: Path) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,20}", serial(image))


def test_disk_keeps_its_serial(image: Path) -> None:
    """When it is opened again, in another way, grows, gets another content, or another name."""
    before = serial(image)
    assert serial(image) == before
    assert serial(image, direct=True) == before
    image.write_bytes(b"x" * 8192)
    assert serial(image) == before
    assert serial(image.rename(image.with_name("renamed"))) == before


def test_disks_have_serials_of_their_own(image: Path) -> None:
    copy = image.with_name("copy")
    shutil.copy2(image, copy)
    other = image.with_name("other")
    other.write_bytes(bytes(512))
    assert len({serial(path) for path in (image, copy, other)}) == 3


def test_links_to_one_file_are_one_disk(image: Path) -> None:
    link = image.with_name("link")
    os.link(image, link)
    assert serial(link) == serial(image)


def test_block_device_has_the_serial_of_its_name(image: Path) -> None:
    with loop_device(image) as device:
        before = serial(device)
        assert serial(device, direct=True) == before
        link = image.with_name("by-id")
        link.symlink_to(device)
        named = serial(link)
        assert named != before
        assert named != serial(image)
    other = image.with_name("other")
    other.write_bytes(bytes(512))
    link.unlink()
    with loop_device(other) as device:
        link.symlink_to(device)
        assert serial(link) == named

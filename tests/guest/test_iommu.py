"""A disk of ours behind the IOMMU of Linux, which makes and ends its translations."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.rig.debian import platforms
from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

SIZE = 8 << 20
ROUNDS = 3
READ = "dd if=/dev/vda bs=1M iflag=direct status=none | sha256sum"
WRITE = "head -c 4194304 /dev/urandom | dd of=/dev/vda bs=1M iflag=fullblock oflag=direct status=none"
#: QEMU 7.2 does not tell of the flush of everything with which Linux ends translations otherwise.
KERNEL_OPTIONS = "iommu.strict=1" if platforms.selected().qemu < (10, 0) else ""


@pytest.mark.extended
async def test_disk_behind_the_guests_iommu(directory: Path) -> None:
    image = directory / "disk"
    image.write_bytes(os.urandom(SIZE))
    async with start_backend(directory, "blk", "--iommu", "--blk-file", str(image)) as backend:
        disk = "vhost-user-blk-pci,disable-legacy=on,chardev=disk,iommu_platform=on,ats=on"
        arguments = ("-chardev", f"socket,id=disk,path={backend.socket}", "-device", disk)
        async with rig.boot(
            *("-global", "intel-iommu.device-iotlb=on", *arguments),
            kernel_options=KERNEL_OPTIONS,
            shared=True,
        ) as guest:
            await guest.sh("modprobe virtio_blk")
            for _ in range(ROUNDS):
                seen = await guest.sh(READ)
                assert seen.split()[0] == hashlib.sha256(image.read_bytes()).hexdigest()
                await guest.sh(WRITE)

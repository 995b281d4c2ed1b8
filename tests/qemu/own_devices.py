"""Devices of one's own that QEMU has to be told about: by class, by object, by a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.vhost_user.echo import Echo
from vhost_user import RING_FEATURES, DeviceId

if TYPE_CHECKING:
    import argparse
    from typing import Self

CONTENT = bytes(range(1, 25))


class Own(Echo):
    """Leaves the guest's IOMMU to the command line."""

    ring_features = RING_FEATURES


class ByMethod(Own):
    """Has a configuration space that a method returns."""

    name = "by method, 1st"  # no id of QEMU's
    config = b""

    def read_config(self, offset: int, size: int) -> bytes:
        return CONTENT[offset : offset + size]


class ByObject(Own):
    """Has a configuration space and queues that a command line says."""

    name = "1st"
    config = b""

    def __init__(self, queues: int) -> None:
        super().__init__()
        self.num_queues = queues
        self.config = CONTENT

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--queues", type=int, default=3)

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(options.queues)


class Without(Own):
    """Has no configuration space."""

    config = b""


class Disk(Own):
    """A disk of one's own, of one queue."""

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK
    num_queues = 1
    config = bytes(60)


class Files(Without):
    """A file system of one's own."""

    device_id: ClassVar[DeviceId] = DeviceId.FS
    name = "my files"


class Sound(Own):
    """A sound card of one's own."""

    device_id: ClassVar[DeviceId] = DeviceId.SOUND
    num_queues = 4
    config = bytes(16)

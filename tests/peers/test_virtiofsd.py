"""virtiofsd, which uses rust-vmm, as the back-end of our front-end library."""

from __future__ import annotations

import struct
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import Feature
from tests.peers import counterparts
from tests.rig.debian import packages
from tests.rig.programs import process
from vhost_user import frontend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vhost_user.frontend import DriverQueue, Frontend

pytestmark = pytest.mark.peers

SECONDS = 60
REQUESTS = 1
"""The queue for requests; queue 0 is that for those that must not wait."""

# Linux, include/uapi/linux/fuse.h: fuse_in_header, fuse_out_header, and what INIT and GETATTR have behind.
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_IN, INIT_OUT_SIZE, ENTRY_OUT_SIZE = struct.Struct("<IIII"), 64, 128
GETATTR_IN, ATTR_OUT = struct.Struct("<IIQ"), struct.Struct("<QIIQQQQQQIIIIIIIIII")
LOOKUP, GETATTR, INIT = 1, 3, 26
INODE = 3
ROOT = 1
VERSION = 7, 38

PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.RESET_DEVICE
)


class FileSystem:
    """What a driver of the file system asks."""

    def __init__(self, queue: DriverQueue) -> None:
        self._queue = queue
        self._unique = 0

    async def init(self) -> tuple[int, int]:
        """Begin, as a mount does; return the version that is spoken."""
        answer = await self._ask(INIT, 0, INIT_IN.pack(*VERSION, 1 << 16, 0), INIT_OUT_SIZE)
        major, minor = struct.unpack_from("<II", answer)
        return major, minor

    async def inode(self, node: int = ROOT, *, room: int = ATTR_OUT.size) -> int:
        """Return the inode number of a node."""
        answer = await self._ask(GETATTR, node, GETATTR_IN.pack(0, 0, 0), room)
        return int(ATTR_OUT.unpack(answer)[INODE])

    async def look_up(self, name: str) -> int:
        """Return the node of a file in the root directory."""
        answer = await self._ask(LOOKUP, ROOT, name.encode() + b"\0", ENTRY_OUT_SIZE)
        (node,) = struct.unpack_from("<Q", answer)
        return int(node)

    async def _ask(self, opcode: int, node: int, body: bytes, room: int) -> bytes:
        self._unique += 1
        header = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, self._unique, node, 0, 0, 0, 0, 0)
        answer = await self._queue.request(header, body, OUT_HEADER.size, room)
        length, error, unique = OUT_HEADER.unpack_from(answer)
        assert (length, error, unique) == (len(answer), 0, self._unique)
        return answer[OUT_HEADER.size :]


@asynccontextmanager
async def virtiofsd(directory: Path) -> AsyncIterator[None]:
    """Share `directory`/shared; it serves one front-end, and ends with it."""
    (directory / "shared").mkdir(exist_ok=True)
    argv = [
        str(packages.program(counterparts.virtiofsd(), "virtiofsd")),
        *(f"--socket-path={directory}/fs.sock", f"--shared-dir={directory}/shared", "--sandbox=none"),
    ]
    async with process.start(argv):
        yield


def connect(directory: Path, *, memory_size: int = 64 << 20) -> AbstractAsyncContextManager[Frontend]:
    """Connect to that file system."""
    return frontend.connect(
        directory / "fs.sock", memory_size=memory_size, patience=SECONDS, wait_for_backend=SECONDS
    )


@pytest.mark.parametrize(
    "without", [ProtocolFeature.NONE, ProtocolFeature.RESET_DEVICE], ids=["", "no_reset"]
)
async def test_driver_begins_anew(directory: Path, without: ProtocolFeature) -> None:
    """With and without RESET_DEVICE, and the second time with other features."""
    async with virtiofsd(directory), connect(directory) as front:
        await front.negotiate(protocol=PROTOCOL.without(without))
        inode = (directory / "shared").stat().st_ino
        for features in (front.features, Feature.VERSION_1):
            await front.set_features(features)
            for _ in range(2):
                filesystem = FileSystem(await front.start_queue(REQUESTS))
                assert await filesystem.init() == VERSION
                assert await filesystem.inode() == inode
                await front.reset()


async def test_queues_are_stopped_and_go_on(directory: Path) -> None:
    async with virtiofsd(directory), connect(directory) as front:
        await front.negotiate()
        queue = await front.start_queue(REQUESTS, size=4)
        filesystem = FileSystem(queue)
        await filesystem.init()
        inode = await filesystem.inode()
        for _ in range(3):
            await front.stop_queue(queue)
            await front.resume_queue(queue)
            assert await filesystem.inode() == inode


async def test_memory_is_added_while_a_queue_runs(directory: Path) -> None:
    async with virtiofsd(directory), connect(directory, memory_size=1 << 16) as front:
        await front.negotiate()
        filesystem = FileSystem(await front.start_queue(REQUESTS))
        await filesystem.init()
        inode = await filesystem.inode()
        await front.add_memory(1 << 21)
        assert await filesystem.inode(room=1 << 20) == inode


async def test_state_moves_to_another_virtiofsd(directory: Path) -> None:
    """The second one knows that INIT was done, and which nodes the driver has."""
    (directory / "shared").mkdir()
    (directory / "shared/file").touch()
    async with virtiofsd(directory), connect(directory) as front:
        await front.negotiate()
        queue = await front.start_queue(REQUESTS)
        filesystem = FileSystem(queue)
        await filesystem.init()
        node = await filesystem.look_up("file")
        await front.stop_queue(queue)
        state = await front.save_state()
    async with virtiofsd(directory), connect(directory) as front:
        await front.negotiate()
        await front.load_state(state)
        filesystem = FileSystem(await front.start_queue(REQUESTS))
        assert await filesystem.inode(node) == (directory / "shared/file").stat().st_ino

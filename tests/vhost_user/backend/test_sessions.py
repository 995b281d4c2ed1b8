"""What a back-end keeps of the guests that have left: nothing, of any device, however they left.

Each device is a program of its own, which serves one front-end after the other; its mappings,
descriptors and threads are seen from outside. QEMU_COMPANION_SESSIONS says how many there are.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from protocol.fds import OwnedFd
from protocol.io import EventFd, FdStream, connect
from protocol.vhost_user import (
    GetFeatures,
    GetInflightFd,
    Inflight,
    SetBackendReqFd,
    SetInflightFd,
    SetLogBase,
    SetLogFd,
    SetMemTable,
)
from protocol.virtio.blk import REQUEST_HEADER
from protocol.virtio.console import CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, ControlEvent, ControlMessage
from protocol.virtio.features import Feature
from protocol.virtio.gpio import IRQ_REQUEST, REQUEST, Direction, GpioFeature, GpioRequestType, IrqType
from protocol.virtio.net import HEADER, NetFeature
from protocol.virtio.vsock import HOST_CID, Header, Operation
from tests.rig.programs.backend import start_backend
from tests.vhost_user.devices.i2c.driver import header as i2c_header
from tests.vhost_user.program.cli_program import OWN_DEVICE
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, Frontend, GuestMemory
from tests.vhost_user.ring.rig import shared_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.rig.programs.process import Program

    Chain: TypeAlias = tuple[int, Sequence[bytes], Sequence[int]]
    """The queue, what the device reads, and the sizes of what it may write."""

SESSIONS = int(os.environ.get("QEMU_COMPANION_SESSIONS", "30"))
LOG_SIZE = 1 << 20
"""A bit for each page of 32 GiB."""
MOST_THREADS = 1 + 8
"""trio keeps those in which something was done for a while, of a disk up to eight."""
MARGIN_KIB = 4096
"""What a program's own memory may grow by, from a third of the sessions on: allocators take their time."""


@dataclass(frozen=True)
class Device:
    """How a device is started, and what its guest does."""

    options: Sequence[str] = ()
    queues: Sequence[int] = (0,)
    features: int = 0
    done: Sequence[Chain] = ()
    """What the driver waits for."""
    held: Sequence[Chain] = ()
    """What the device still has when the guest leaves."""
    name: str = ""
    sockets: int = 0
    ring: Sequence[Feature] = field(default=(Feature.NONE, Feature.RING_PACKED))


def _room(queue: int, count: int = 8) -> list[Chain]:
    return [(queue, [], [4096])] * count


def _gpio(kind: GpioRequestType, value: int = 0) -> Chain:
    return 0, [REQUEST.pack(kind, 0, value)], [2]


DEVICES = {
    "blk": Device(
        ("--blk-file", "{disk}", "--fault", "read:lba=8-15:stuck"),
        done=[
            (0, [REQUEST_HEADER.pack(kind, 0, 0), *data], [*room, 1])
            for kind, data, room in (
                (0, [], [4096]),
                (1, [bytes(4096)], []),
                (8, [], [20]),
            )
        ],
        held=[(0, [REQUEST_HEADER.pack(0, 0, 8)], [4096, 1])] * 8,
    ),
    "console": Device(
        ("--console", "none", "--port", "data=none"),
        queues=range(6),
        features=1 << 1,
        done=[
            (CONTROL_TRANSMITQ, [ControlMessage(0, ControlEvent.DEVICE_READY, 1).encode()], []),
            (CONTROL_TRANSMITQ, [ControlMessage(0, ControlEvent.PORT_READY, 1).encode()], []),
            (CONTROL_TRANSMITQ, [ControlMessage(0, ControlEvent.PORT_OPEN, 1).encode()], []),
            (1, [b"hello\n"], []),
        ],
        held=[*_room(0), *_room(CONTROL_RECEIVEQ, 32), *_room(4)],
    ),
    "gpio": Device(
        ("--device-list", "s8"),
        queues=(0, 1),
        features=GpioFeature.IRQ,
        done=[
            _gpio(GpioRequestType.SET_DIRECTION, Direction.IN),
            _gpio(GpioRequestType.SET_IRQ_TYPE, IrqType.EDGE_BOTH),
        ],
        held=[(1, [IRQ_REQUEST.pack(0)], [1])],
    ),
    "i2c": Device(
        ("--chip", "lm75@0x48"),
        done=[(0, [i2c_header(0x48, 2)], [2, 1])],
        held=[(0, [i2c_header(0x48, 3)], [2, 1])],  # the beginning of a group
    ),
    "input": Device(
        ("--keyboard",),
        queues=(0, 1),
        done=[(1, [bytes(8)], [])],
        held=_room(0),
    ),
    "net": Device(
        ("--link", "--socket-count", "2"),
        queues=(0, 1),
        features=NetFeature.MRG_RXBUF,
        done=[(1, [bytes(HEADER.size), bytes(64)], [])],
        held=_room(0, 12),
        sockets=1,
    ),
    "rng": Device(("--max-bytes", "1"), held=_room(0)),
    "vsock": Device(
        ("--uds-path", "{directory}/vm"),
        queues=(0, 1, 2),
        done=[(1, [Header(3, HOST_CID, 1024, 99, Operation.REQUEST).encode()], [])],
        held=[*_room(0), *_room(2)],
    ),
    "hello": Device(done=[(0, [], [16])] * 8, name="hello:Hello"),
    "keeper": Device(held=_room(0), name="hello:Keeper"),
    "failing": Device(held=_room(0), name="hello:Failing"),
}

OWN_DEVICES = (
    "from collections import deque\n"
    + OWN_DEVICE
    + '''

class Keeper(Hello):
    """Keeps all it gets, also what it has completed, and its queues."""

    kept = deque(maxlen=100)
    drain_seconds = 0

    async def run_queue(self, queue):
        self.kept.append(queue)
        async for chain in queue:
            self.kept.append((chain, chain.writable))
            if len(self.kept) % 2:
                chain.complete()


class Failing(Hello):
    """Fails with chains in hand."""

    async def run_queue(self, queue):
        async for batch in queue.batches():
            views = [chain.writable.buffers for chain in batch]
            raise RuntimeError(f"{len(views)} chains in hand")
'''
)


@dataclass(frozen=True)
class Holdings:
    """What a process has."""

    mappings: int
    """Of memory files: guests', and what a front-end keeps for us."""
    descriptors: int
    threads: int
    memory_kib: int

    @classmethod
    def of(cls, program: Program) -> Holdings:
        proc = Path(f"/proc/{program.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return cls(
            (proc / "maps").read_text().count("/memfd:"),
            len(list((proc / "fd").iterdir())),
            int(status["Threads"]),
            int(status["VmRSS"].split()[0]),
        )


async def _session(front: Frontend, device: Device, number: int, program: Program) -> None:
    """Be a guest until it leaves; each in another way, and every third after it has lost some memory."""
    ring = device.ring[number % len(device.ring)]
    await front.negotiate(DEFAULT_FEATURES | device.features | ring)
    await front.share_memory()
    if number % 4 < 2:
        reply = await front.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        await front.request(SetInflightFd(reply.mmap_size, 0, 1, 16, fds=reply.take_fds()))
    if number % 5 == 0:
        await _pass_more(front)
    queues = {index: front.queue(index, 64) for index in device.queues}
    for queue in queues.values():
        await queue.start()
    passing = number % 3 == 1
    with _more_memory(front) if passing else nullcontext(front.memory) as memory:
        if passing:
            regions, fds = (front.memory.region, memory.region), (front.memory.fd.dup(), memory.fd.dup())
            await front.request(SetMemTable(regions, fds=fds))
        for index, readable, writable in device.done:
            await queues[index].exchange(readable, writable, memory)
    for index, readable, writable in device.held:
        queues[index].submit(readable, writable)
    if passing:
        await front.share_memory()
        known = 1 + (number % 4 < 2) + (number % 5 == 0)
        assert Holdings.of(program).mappings == known, "what was taken away is mapped"
    if number % 3 == 2:
        for queue in queues.values():
            await queue.stop()


async def _pass_more(front: Frontend) -> None:
    """Have written pages logged, and pass a socket for the back-end's own requests, which nobody answers."""
    await front.request(SetLogBase(LOG_SIZE, 0, fds=(shared_file(LOG_SIZE),)))
    await front.request(SetLogFd(fds=(EventFd.create(),)))
    await front.set_features(front.features | Feature.LOG_ALL)
    ours, theirs = socket.socketpair()
    front._channel = FdStream(ours)
    await front.request(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))


def _more_memory(front: Frontend) -> closing[GuestMemory]:
    region = front.memory.region
    more = GuestMemory(1 << 20, region.guest_address + (1 << 32), region.user_address + (1 << 32))
    return closing(more)


@pytest.mark.parametrize("name", DEVICES)
async def test_nothing_is_kept_of_guests_that_have_left(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DEVICES[name]
    monkeypatch.setenv("PYTHONPATH", str(directory))
    (directory / "hello.py").write_text(OWN_DEVICES)
    disk = directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    options = [option.format(disk=disk, directory=directory) for option in device.options]
    seen: list[Holdings] = []
    async with start_backend(directory, device.name or name, *options) as backend:
        path = f"{backend.socket}{'0' * device.sockets}"
        for number in range(SESSIONS):
            front = Frontend(await connect(path))
            try:
                await front.request(GetFeatures())  # the one before has left, as far as anybody can tell
                seen.append(Holdings.of(backend.program))
                await _session(front, device, number, backend.program)
            except (EOFError, OSError):
                assert name == "failing"
            finally:
                front.close()
    assert [one.mappings for one in seen] == [0] * SESSIONS
    assert {one.descriptors for one in seen} == {seen[0].descriptors}
    assert max(one.threads for one in seen) <= MOST_THREADS
    assert seen[-1].memory_kib - seen[SESSIONS // 3].memory_kib < MARGIN_KIB

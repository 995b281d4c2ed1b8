"""A guest under load that migrates between QEMUs and back-ends, and its checks."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.rig.programs.backend import RunningBackend

CPUS = 2
"""Each has a queue of the disk's."""
WORKERS = 3
BLOCKS = 512
"""Each worker has so many of the disk's blocks, and as much memory that only the disk writes to."""
BLOCK = 4096
LOAD = f"disk-load /dev/vda {WORKERS} {BLOCKS}"
SECONDS = 120
"""What a migration may take on a machine that is busy with others."""
FAST = 1 << 40
"""Bytes a second."""
LONG_ENOUGH = 30_000
"""Milliseconds that the guest may stand still, so that it migrates however busy it is."""
STEP, HOLD = 1 << 20, 32 << 20
"""Bytes of a migration: after how many to look how far it is, and to let the guest work meanwhile."""
_WORD_STEP = 0x9E3779B97F4A7C15


class LoadError(Exception):
    """The load in the guest found memory or disk wrong; the text is its own."""


class Stream:
    """What one QEMU sends to the other, which goes through our hands."""

    def __init__(self, outgoing: trio.SocketStream, incoming: trio.SocketStream) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.passed = 0
        """How many bytes went through."""
        self.held = 0
        """How many times it was held up."""

    async def pass_on(self, count: int | None) -> None:
        """Let so many bytes through, or with None all there are. Raises LookupError for fewer."""
        end = None if count is None else self.passed + count
        with trio.fail_after(SECONDS):
            while end is None or self.passed < end:
                data = await self._outgoing.receive_some(65536)
                if not data:
                    if end is None:
                        return
                    raise LookupError(f"the migration ended after {self.passed} bytes")
                await self._incoming.send_all(data)
                self.passed += len(data)


@dataclass(frozen=True)
class Host:
    """A QEMU and our back-end of the disk: where the guest is, was, or is to go."""

    guest: rig.Guest
    backend: RunningBackend
    socket: Path
    """Where the migration comes in."""

    async def passes(self) -> int:
        """Return how many times QEMU has begun to send what the guest has changed; 1: to send all of it."""
        state = await self.guest.qmp.execute("query-migrate")
        passes: int = state["ram"]["dirty-sync-count"] if "ram" in state else 0
        return passes

    async def until_migration_is(self, status: str) -> None:
        """Wait until the migration from here has this status."""
        while (await self.guest.qmp.wait_event("MIGRATION", seconds=SECONDS))["status"] != status:
            pass


@asynccontextmanager
async def start_host(
    image: Path, number: int, *, device: str = "blk", properties: str = ""
) -> AsyncIterator[Host]:
    """Run back-end and QEMU, numbered: 0 boots the guest, the others wait for it."""
    directory = image.parent
    name = f"host{number}"
    argv = ["-v", "--blk-file", str(image), "--num-queues", str(CPUS), *["--incoming"] * (number > 0)]
    async with start_backend(directory, device, *argv, name=name) as backend:
        disk = f"vhost-user-blk-pci,chardev=disk,num-queues={CPUS}{properties}"
        arguments = [*backend.chardev("disk"), "-device", disk, "-smp", str(CPUS)]
        starting = rig.await_migration(*arguments) if number else rig.boot(*arguments, shared=True)
        async with starting as guest:
            yield Host(guest, backend, directory / f"{name}.migration")


@asynccontextmanager
async def begin(source: Host, target: Host, load: rig.Command) -> AsyncIterator[Stream]:
    """Begin to migrate; the block starts when each page of the guest's memory has been sent at least once.

    From then on the guest stays where it is, as nothing more gets through, until the block passes
    it on. It is kept busy so that there is much left to send.
    """
    with trio.socket.socket(socket.AF_UNIX) as listener:
        path = target.socket.with_suffix(".relay")
        await listener.bind(str(path))
        listener.listen()
        await target.guest.qmp.execute("migrate-incoming", uri=f"unix:{target.socket}")
        qmp = source.guest.qmp
        await passes(load)  # all its memory is in use, and from now on some of it only the disk writes to
        await qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        await qmp.execute("migrate-set-parameters", max_bandwidth=FAST, downtime_limit=1)
        await qmp.execute("migrate", uri=f"unix:{path}")
        with trio.fail_after(SECONDS):
            accepted, _ = await listener.accept()
    async with (
        trio.SocketStream(accepted) as outgoing,
        await trio.open_unix_socket(target.socket) as incoming,
    ):
        stream = Stream(outgoing, incoming)
        while await source.passes() < 2:
            if stream.passed >= (stream.held + 1) * HOLD:
                stream.held += 1
                await passes(load)
            await stream.pass_on(STEP)
        yield stream


async def migrate(source: Host, target: Host, load: rig.Command) -> None:
    """Let the guest migrate while it works: after its memory was sent, the disk writes all of it again.

    The source's QEMU is killed in the end.
    """
    async with begin(source, target, load) as stream:
        await passes(load)
        await source.guest.qmp.execute("migrate-set-parameters", downtime_limit=LONG_ENOUGH)
        await stream.pass_on(None)
    await source.until_migration_is("completed")
    await target.guest.qmp.wait_event("RESUME", seconds=SECONDS)
    target.guest.arrived(source.guest)
    await source.guest.kill()


async def passes(load: rig.Command) -> None:
    """Wait until each worker has written and read all its blocks, from now on. Raises LoadError."""
    seen: Counter[str] = Counter()
    await load.tell("now")
    with trio.fail_after(SECONDS):
        while await _line(load) != "now":
            pass
        while len(seen) < WORKERS or min(seen.values()) < 2:  # the first one had begun before
            seen[(await _line(load)).split()[1]] += 1


async def _line(load: rig.Command) -> str:
    line = await load.line()
    if line.startswith("disk-load:"):
        raise LoadError(line)
    return line


async def stop(load: rig.Command) -> list[tuple[int, int]]:
    """Stop the load; return each worker's version, and how many of its blocks have that one already.

    Raises CommandError if it has found anything wrong.
    """
    await load.tell("stop")
    with trio.fail_after(SECONDS):
        lines = [line.split() for line in (await load.finish()).splitlines()]
    ends = {int(line[1]): (int(line[3]), int(line[5])) for line in lines if line[0] == "worker"}
    return [ends[number] for number in range(WORKERS)]


def expected_disk(ends: Sequence[tuple[int, int]]) -> bytes:
    """Return the disk as the workers left it, from what `stop()` returned."""
    return b"".join(
        _block(worker * BLOCKS + number, version if number < following else version - 1)
        for worker, (version, following) in enumerate(ends)
        for number in range(BLOCKS)
    )


def _block(number: int, version: int) -> bytes:
    """Return what disk-load writes: see word() in tests/rig/guest/src/disk-load.c."""
    first = number << 32 | version
    words = [(first + index * _WORD_STEP) & 0xFFFF_FFFF_FFFF_FFFF for index in range(BLOCK // 8)]
    return struct.pack(f"<{len(words)}Q", *words)

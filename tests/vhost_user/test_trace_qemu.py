"""A real QEMU and a real back-end, QEMU's storage daemon, with the trace between them."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import tempfile
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from protocol.virtio import split
from protocol.virtio.blk import REQUEST_HEADER, RequestStatus, RequestType
from protocol.virtio.features import Feature
from protocol.virtio.ids import PCI_VENDOR_ID_REDHAT_QUMRANET, DeviceId
from protocol.virtio.pci import CapabilityId
from protocol.virtio.split import DescriptorFlag
from protocol.virtio.status import DeviceStatus
from tests.rig import process
from tests.rig.lines import LineChannel
from tests.rig.msix import MsiX
from tests.rig.qemu import Machine, start_qemu
from tests.rig.qmp import Qmp
from tests.vhost_user.trace_program import SECONDS, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.rig.qtest import QTest

pytestmark = pytest.mark.qemu

DAEMON = "qemu-storage-daemon"
SECTORS = 2048
CONTENT = b"".join(struct.pack("<Q", number) * 64 for number in range(SECTORS))

# Guest memory: interrupts, a ring, and one request's buffers.
MESSAGES, RING, HEADER, DATA, STATUS = 0x1000, 0x10000, 0x20000, 0x21000, 0x20800
QUEUE_SIZE = 8
QUEUE_VECTOR = 1

# Configuration structures (virtio 1.2, section 4.1.4), and offsets in the common one.
COMMON, NOTIFY = 1, 2
DRIVER_FEATURE_SELECT, DRIVER_FEATURE, DEVICE_STATUS = 8, 12, 20
QUEUE_SIZE_FIELD, QUEUE_MSIX_VECTOR, QUEUE_ENABLE, QUEUE_PARTS = 24, 26, 28, 32


class GuestDisk:
    """A virtio disk as a driver sees it that has one queue and makes one request at a time."""

    def __init__(self, qtest: QTest, msix: MsiX, structures: dict[int, int]) -> None:
        self._qtest = qtest
        self._structures = structures
        self._layout = split.layout(QUEUE_SIZE)
        self._requests = 0
        self.msix = msix

    @classmethod
    async def probe(cls, machine: Machine) -> GuestDisk:
        """Find the device, and drive it until it is ready."""
        [found] = await machine.bus.find(PCI_VENDOR_ID_REDHAT_QUMRANET, DeviceId.BLOCK.pci_device_id)
        bars = await found.place_bars()
        structures = {}
        for capability in await found.capabilities():
            if capability.id == CapabilityId.VENDOR_SPECIFIC:
                kind, bar = (
                    await found.read(capability.offset + 3, 1),
                    await found.read(capability.offset + 4, 1),
                )
                if bar in bars:
                    structures[kind] = bars[bar].address + await found.read(capability.offset + 8)
        disk = cls(machine.qtest, await MsiX.enable(found, bars, MESSAGES), structures)
        await disk._start()
        return disk

    async def _common(self, offset: int, value: int, size: int) -> None:
        await self._qtest.write(self._structures[COMMON] + offset, value, size)

    async def _start(self) -> None:
        status = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
        await self._common(DEVICE_STATUS, status, 1)
        await self._common(DRIVER_FEATURE_SELECT, 1, 4)
        await self._common(DRIVER_FEATURE, Feature.VERSION_1 >> 32, 4)
        await self._common(DEVICE_STATUS, status | DeviceStatus.FEATURES_OK, 1)
        await self._common(QUEUE_SIZE_FIELD, QUEUE_SIZE, 2)
        await self._common(QUEUE_MSIX_VECTOR, QUEUE_VECTOR, 2)
        for number, part in enumerate((self._layout.table, self._layout.avail, self._layout.used)):
            await self._common(QUEUE_PARTS + 8 * number, RING + part, 4)
        await self._common(QUEUE_ENABLE, 1, 2)
        await self._common(DEVICE_STATUS, status | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK, 1)

    async def read(self, sector: int) -> bytes:
        """Read a sector; look for the end at each interrupt, and at a restart there is one too many."""
        write, nxt = DescriptorFlag.WRITE, DescriptorFlag.NEXT
        rows = [(HEADER, 16, nxt, 1), (DATA, 512, write | nxt, 2), (STATUS, 1, write, 0)]
        table = b"".join(struct.pack("<" + split.DESCRIPTOR_FORMAT, *row) for row in rows)
        await self._qtest.write_bytes(HEADER, REQUEST_HEADER.pack(RequestType.IN, 0, sector))
        await self._qtest.write_bytes(RING + self._layout.table, table)
        self._requests += 1
        await self._qtest.write(RING + self._layout.avail + 2, self._requests, 2)
        await self._qtest.write(self._structures[NOTIFY], 0, 2)
        while await self._qtest.read(RING + self._layout.used + 2, 2) < self._requests:
            await self.msix.wait(QUEUE_VECTOR, seconds=SECONDS)
        assert await self._qtest.read(STATUS, 1) == RequestStatus.OK
        return await self._qtest.read_bytes(DATA, 512)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "disk").write_bytes(CONTENT)
        yield Path(name)


@asynccontextmanager
async def storage_daemon(directory: Path) -> AsyncIterator[process.Program]:
    """Export `directory`/disk at `directory`/backend."""
    if shutil.which(DAEMON) is None:
        pytest.fail(f"no {DAEMON}: install Debian's qemu-system-common", pytrace=False)
    argv = [
        *(DAEMON, "--blockdev", f"driver=file,node-name=disk,filename={directory}/disk"),
        "--export",
        f"vhost-user-blk,id=blk,node-name=disk,addr.type=unix,addr.path={directory}/backend,writable=on",
    ]
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        monitor = ["--chardev", f"socket,id=qmp,fd={theirs.fileno()}", "--monitor", "qmp"]
        async with process.start(argv + monitor, pass_fds=[theirs.fileno()]) as program:
            theirs.close()
            # It answers once it has made all that its command line says.
            await Qmp.negotiate(LineChannel(trio.socket.from_stdlib_socket(ours)))
            yield program


def qemu_arguments(directory: Path, chardev: str = "") -> list[str]:
    """Return the disk, and a firmware that only halts: QEMU starts a back-end while the machine runs."""
    halt = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to hlt
    (directory / "firmware").write_bytes(halt.rjust(0x10000 - 12, b"\0").ljust(0x10000, b"\0"))
    return [
        *("-bios", str(directory / "firmware")),
        *("-object", "memory-backend-memfd,id=ram,size=128M,share=on"),
        *("-chardev", f"socket,id=disk,path={directory}/trace{chardev}"),
        *("-device", "vhost-user-blk-pci,chardev=disk,disable-legacy=on"),
    ]


def traced(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "trace.json").read_text().splitlines()]


@asynccontextmanager
async def guest(directory: Path, chardev: str = "") -> AsyncIterator[tuple[GuestDisk, Machine]]:
    """Run a QEMU whose disk is at `directory`/trace."""
    arguments = qemu_arguments(directory, chardev)
    async with start_qemu(*arguments, machine="q35,memory-backend=ram") as machine:
        await machine.qmp.execute("cont")
        yield await GuestDisk.probe(machine), machine


async def test_guest_uses_a_disk_and_the_trace_shows_the_conversation(directory: Path) -> None:
    options = ["--format", "json", "--device", "blk", "-o", f"{directory}/trace.json"]
    async with storage_daemon(directory):
        with running(directory, *options) as trace:
            async with guest(directory) as (disk, machine):
                for sector in (0, 1, SECTORS - 1):
                    assert await disk.read(sector) == struct.pack("<Q", sector) * 64
                await machine.qmp.execute("quit")
                await machine.stopped()
            trace.terminate()
            assert await trio.to_thread.run_sync(trace.wait, SECONDS) == 0
    events = traced(directory)
    assert [event for event in events if event.get("problem")] == []
    check_setup(events)


def check_setup(events: list[dict[str, Any]]) -> None:
    """The conversation must hold these messages in this order, among others."""
    expected = iter(
        [
            ("request", "GET_FEATURES"),
            ("reply", "GET_FEATURES"),
            ("request", "GET_PROTOCOL_FEATURES"),
            ("reply", "GET_PROTOCOL_FEATURES"),
            ("request", "SET_PROTOCOL_FEATURES"),
            ("request", "SET_BACKEND_REQ_FD"),
            ("reply", "SET_BACKEND_REQ_FD"),
            ("request", "SET_OWNER"),
            ("request", "GET_CONFIG"),
            ("reply", "GET_CONFIG"),
            ("request", "SET_FEATURES"),
            ("request", "ADD_MEM_REG"),
            ("reply", "ADD_MEM_REG"),
            ("request", "SET_VRING_NUM"),
            ("request", "SET_VRING_BASE"),
            ("request", "SET_VRING_ADDR"),
            ("request", "SET_VRING_KICK"),
            ("request", "SET_VRING_ENABLE"),
            ("request", "GET_VRING_BASE"),
            ("reply", "GET_VRING_BASE"),
        ]
    )
    wanted = next(expected)
    for event in events:
        if (event.get("kind"), event.get("message")) == wanted:
            wanted = next(expected, ("", ""))
    assert wanted == ("", ""), f"{wanted} is missing in {[event.get('text') for event in events]}"
    by_name = {event["message"]: event for event in events if event.get("kind") == "request"}
    assert by_name["SET_FEATURES"]["fields"]["features"].endswith("VERSION_1")
    assert by_name["SET_VRING_NUM"]["fields"] == {"index": 0, "num": QUEUE_SIZE}
    assert by_name["ADD_MEM_REG"]["fields"]["region"]["size"] == 127 << 20  # what is above 1 MiB
    assert by_name["ADD_MEM_REG"]["fds"] == ["memory-backend-memfd"]
    offered = next(event for event in events if event.get("kind") == "reply")
    assert "FLUSH" in offered["fields"]["features"]
    assert offered["seconds"] > 0


async def test_guest_goes_on_after_its_backend_was_killed_and_started_anew(directory: Path) -> None:
    with running(directory, "--format", "json", "-o", f"{directory}/trace.json"):
        async with storage_daemon(directory) as first, guest(directory, ",reconnect=1") as (disk, _):
            assert await disk.read(1) == struct.pack("<Q", 1) * 64
            first.kill()
            await first.wait()
            async with storage_daemon(directory):
                # QEMU tries again each second; the request is in the ring until then.
                assert await disk.read(2) == struct.pack("<Q", 2) * 64
    events = traced(directory)
    assert "connection closed by the back-end" in {event.get("note") for event in events}
    started = {event["connection"] for event in events if event.get("message") == "SET_VRING_KICK"}
    assert len(started) == 2

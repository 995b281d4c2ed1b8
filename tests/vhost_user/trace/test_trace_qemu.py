"""A real QEMU and a real back-end, QEMU's storage daemon, with the trace between them."""

from __future__ import annotations

import json
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trio

import vhost_user
from protocol.virtio.blk import REQUEST_HEADER, SECTOR_SIZE, BlkConfig, RequestStatus, RequestType
from protocol.virtio.ids import DeviceId
from tests.qemu.virtio_pci import SplitQueue, VirtioPci, probe
from tests.rig.qemu.shared_memory import start_machine
from tests.vhost_user.frontend.storage_daemon import SECTORS, content, fill_disk, storage_daemon
from tests.vhost_user.program.trace_program import SECONDS, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

QUEUE_SIZE = 8
CONFIG_CHANGE = (True, "request", "CONFIG_CHANGE_MSG need_reply")
CONFIG_VECTOR, QUEUE_VECTOR = 0, 1


async def started_disk(machine: Machine) -> GuestDisk:
    """Return the machine's disk, driven until it is ready."""
    device = await probe(machine, DeviceId.BLOCK)
    await device.negotiate(0)
    await device.set_config_vector(CONFIG_VECTOR)
    queue = await device.set_up_queue(size=QUEUE_SIZE, vector=QUEUE_VECTOR)
    await device.start()
    return GuestDisk(device, queue)


class GuestDisk(NamedTuple):
    """A disk as a driver sees it."""

    device: VirtioPci
    queue: SplitQueue

    async def read(self, sector: int) -> bytes:
        """Read a sector."""
        header = REQUEST_HEADER.pack(RequestType.IN, 0, sector)
        data, status = await self.queue.request([header], [SECTOR_SIZE, 1])
        assert status == bytes([RequestStatus.OK])
        return data


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        fill_disk(Path(name))
        yield Path(name)


def traced(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "trace.json").read_text().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in lines]


@asynccontextmanager
async def guest(directory: Path, chardev: str = "") -> AsyncIterator[tuple[GuestDisk, Machine]]:
    """Run a QEMU whose disk is at `directory`/trace."""
    arguments = [
        *("-chardev", f"socket,id=disk,path={directory}/trace{chardev}"),
        *("-device", "vhost-user-blk-pci,chardev=disk,disable-legacy=on"),
    ]
    async with start_machine(directory, *arguments) as machine:
        yield await started_disk(machine), machine


async def test_guest_uses_a_disk_and_the_trace_shows_the_conversation(directory: Path) -> None:
    options = ["--format", "json", "--device", "blk", "-o", f"{directory}/trace.json"]
    async with storage_daemon(directory):
        with running(directory, *options) as trace:
            async with guest(directory) as (disk, machine):
                for sector in (0, 1, SECTORS - 1):
                    assert await disk.read(sector) == content(sector)
                    await disk.device.msix.wait(QUEUE_VECTOR, seconds=SECONDS)
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
            assert await disk.read(1) == content(1)
            first.kill()
            await first.wait()
            async with storage_daemon(directory):
                # QEMU tries again each second; the request is in the ring until then.
                assert await disk.read(2) == content(2)
    events = traced(directory)
    assert "connection closed by the back-end" in {event.get("note") for event in events}
    started = {event["connection"] for event in events if event.get("message") == "SET_VRING_KICK"}
    assert len(started) == 2


class GrowingDisk(vhost_user.VirtioDevice):
    """A disk that nobody reads, and that has grown."""

    device_id = DeviceId.BLOCK
    config = BlkConfig(capacity=100).encode()

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        async for chain in queue:
            chain.complete()

    def grow(self) -> None:
        self.config = BlkConfig(capacity=200).encode()
        self.notify_config_changed()


async def test_backend_requests_pass_and_are_told(directory: Path) -> None:
    """The storage daemon makes none, so this back-end is ours."""
    device = GrowingDisk()
    with running(directory, "--format", "json", "-o", f"{directory}/trace.json"):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(vhost_user.serve, device, socket_path=directory / "backend"))
            async with guest(directory) as (disk, _):
                assert await disk.device.config(0, 8) == (100).to_bytes(8, "little")
                device.grow()
                await disk.device.msix.wait(CONFIG_VECTOR, seconds=SECONDS)
                assert await disk.device.config(0, 8) == (200).to_bytes(8, "little")
                await until_traced(directory, (True, "reply", "reply to CONFIG_CHANGE_MSG value=0"))
            nursery.cancel_scope.cancel()
    events = messages(directory)
    assert (False, "request", "GET_CONFIG") in events[events.index(CONFIG_CHANGE) :]


def messages(directory: Path) -> list[tuple[bool, str, str]]:
    """Return of each message whether it went over the back-end's channel, its kind, and what it says."""
    told = [event for event in traced(directory) if "text" in event]
    return [(event["channel"], event["kind"], event["text"].split(" offset")[0]) for event in told]


async def until_traced(directory: Path, message: tuple[bool, str, str]) -> None:
    """Wait until the trace has seen a message behind CONFIG_CHANGE."""
    with trio.fail_after(SECONDS):
        while True:
            told = messages(directory)
            if CONFIG_CHANGE in told and message in told[told.index(CONFIG_CHANGE) :]:
                return
            await trio.sleep(0.01)

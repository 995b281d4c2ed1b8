"""vhost-user-rng behind a real QEMU: the test is the guest's driver."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.virtio_pci import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    INDIRECT_DESC,
    RING_PACKED,
    VERSION_1,
    VirtioPci,
    probe,
)
from tests.rig.programs.backend import (
    RunningBackend,
    command,
    start_backend,
    start_program,
    until_printed,
)
from tests.rig.qemu.msix import message
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.qemu.virtio_pci import SplitQueue
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

RNG = 4
SECONDS = 60
IOMMU = ("-device", "intel-iommu,intremap=off,device-iotlb=on")


def rng_arguments(backend: RunningBackend, name: str = "rng", properties: str = "") -> list[str]:
    device = f"vhost-user-rng-pci,id={name}-device,chardev={name}{properties}"
    return [*backend.chardev(name), "-device", device]


async def started(
    guest: VirtioPci, features: int = INDIRECT_DESC | EVENT_IDX, *, size: int | None = None
) -> SplitQueue:
    """Bring the rng up as a driver does; return its queue, of `size` or as large as QEMU has it."""
    await guest.negotiate(features)
    queue = await guest.set_up_queue(size=size)
    await guest.start()
    return queue


@pytest.fixture
async def backend(directory: Path) -> AsyncIterator[RunningBackend]:
    """Our rng, which logs each message."""
    async with start_backend(directory, "rng", "-v") as running:
        yield running


@pytest.fixture
async def machine(directory: Path, backend: RunningBackend) -> AsyncIterator[Machine]:
    """A QEMU with the rng."""
    async with start_machine(directory, *rng_arguments(backend)) as running:
        yield running


@pytest.fixture
async def guest(machine: Machine) -> VirtioPci:
    """The rng as its driver sees it."""
    return await probe(machine, RNG)


@pytest.mark.parametrize("features", [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX])
async def test_guest_gets_random_bytes(guest: VirtioPci, features: int) -> None:
    queue = await started(guest, features)
    assert guest.features == features | VERSION_1
    (first,) = await queue.request([], [64])
    assert await guest.msix.wait(0) == message(0)
    (second,) = await queue.request([], [64])
    assert len(first) == len(second) == 64
    assert first != second


async def test_one_program_serves_several_guests(directory: Path) -> None:
    """And goes on with one when the other has left."""
    source = directory / "numbers"
    source.write_bytes(bytes(range(100)))
    path = directory / "rng.sock"
    argv = command("rng", "--socket-path", str(path), "-c", "2", "-f", str(source))
    async with start_program(directory, argv, "rng") as program:
        backends = [RunningBackend(program, Path(f"{path}{number}")) for number in range(2)]
        async with start_machine(directory, *rng_arguments(backends[0]), name="first") as first:
            one = await started(await probe(first, RNG))
            assert await one.request([], [10]) == [bytes(range(10))]
            async with start_machine(directory, *rng_arguments(backends[1]), name="second") as second:
                another = await started(await probe(second, RNG))
                assert await another.request([], [10]) == [bytes(range(10, 20))]
            assert await one.request([], [10]) == [bytes(range(20, 30))]
        program.terminate()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0
    assert not any(backend.socket.exists() for backend in backends)


async def test_bytes_come_from_the_file(directory: Path) -> None:
    source = directory / "numbers"
    source.write_bytes(bytes(range(100)))
    async with (
        start_backend(directory, "rng", "-f", str(source)) as backend,
        start_machine(directory, *rng_arguments(backend)) as machine,
    ):
        queue = await started(await probe(machine, RNG))
        assert await queue.request([], [60, 30]) == [bytes(range(60)), bytes(range(60, 90))]
        assert await queue.request([], [20]) == [bytes(range(90, 100))]
        assert await queue.request([], [5]) == [bytes(range(5))]


async def test_rule_23_chain_longer_than_the_ring_comes_through_an_indirect_table(guest: VirtioPci) -> None:
    queue = await started(guest, size=4)
    parts = await queue.request([], [8] * 20, indirect=True)
    assert [len(part) for part in parts] == [8] * 20


async def test_ring_goes_round_many_times(guest: VirtioPci) -> None:
    queue = await started(guest)
    seen = {(await queue.request([], [16]))[0] for _ in range(50)}
    assert len(seen) == 50
    assert await queue.used_index() == 50


async def test_several_requests_at_once_come_back_together(guest: VirtioPci) -> None:
    queue = await started(guest)
    requests = [await queue.add([], [32]) for _ in range(4)]
    await queue.kick()
    taken: list[tuple[int, int]] = []
    while len(taken) < 4:
        taken += await queue.wait()
    assert taken == [(request.head, 32) for request in requests]


@pytest.mark.parametrize("features", [0, INDIRECT_DESC | EVENT_IDX])
async def test_packed_ring(directory: Path, backend: RunningBackend, features: int) -> None:
    async with start_machine(directory, *rng_arguments(backend, properties=",packed=on")) as machine:
        guest = await probe(machine, RNG)
        for _ in range(2):
            assert await guest.negotiate(features | RING_PACKED) == features | RING_PACKED | VERSION_1
            queue = await guest.set_up_packed_queue()
            await guest.start()
            seen = {b"".join(await queue.request([], [16, 3])) for _ in range(50)}
            assert len(seen) == 50
            assert {len(data) for data in seen} == {19}
            if features:
                assert len(await queue.request([], [8] * 20, indirect=True)) == 20


async def test_addresses_go_through_the_guests_iommu(directory: Path) -> None:
    properties = ",iommu_platform=on,ats=on"
    async with (
        start_backend(directory, "rng", "-v", "--iommu") as backend,
        start_machine(directory, *IOMMU, *rng_arguments(backend, properties=properties)) as machine,
    ):
        guest = await probe(machine, RNG)
        for _ in range(2):
            queue = await started(guest, INDIRECT_DESC | EVENT_IDX | ACCESS_PLATFORM)
            assert guest.features & ACCESS_PLATFORM
            for _ in range(6):
                assert any((await queue.request([], [64]))[0])
        await guest.reset()
        assert "type=MISS" in backend.program.output()
        assert any("type=UPDATE" in request for request in backend.requests())


async def test_machine_with_an_iommu_that_is_not_for_this_device(
    directory: Path, backend: RunningBackend
) -> None:
    """QEMU 10 offers what we offer: a driver that is offered ACCESS_PLATFORM gives addresses of its IOMMU."""
    async with start_machine(directory, *IOMMU, *rng_arguments(backend)) as machine:
        guest = await probe(machine, RNG)
        assert not await guest.offered() & ACCESS_PLATFORM
        queue = await started(guest, INDIRECT_DESC | EVENT_IDX | ACCESS_PLATFORM)
        assert any((await queue.request([], [64]))[0])


async def test_masked_vector_is_pending_until_unmasked(guest: VirtioPci) -> None:
    queue = await started(guest)
    await guest.msix.mask(0)
    await queue.request([], [64])
    with trio.fail_after(SECONDS):
        while not await guest.msix.pending(0):
            pass
    assert not await guest.msix.fired(0)
    await guest.msix.unmask(0)
    assert await guest.msix.wait(0) == message(0)


async def test_reset_and_new_start(guest: VirtioPci, backend: RunningBackend) -> None:
    """A guest that reboots begins again at index 0, with the device that it had."""
    for _ in range(3):
        queue = await started(guest)
        for _ in range(6):
            (data,) = await queue.request([], [64])
            assert any(data)
        assert await queue.used_index() == 6
    await guest.reset()
    assert backend.requests().count("GET_VRING_BASE index=0") == 3
    assert " is refused" not in backend.program.output()


async def test_machine_pauses_and_goes_on(guest: VirtioPci, machine: Machine) -> None:
    queue = await started(guest)
    await queue.request([], [64])
    await machine.qmp.execute("stop")
    request = await queue.add([], [64])
    await queue.kick()
    await machine.qmp.execute("cont")
    assert await queue.wait() == [(request.head, 64)]
    assert await queue.used_index() == 2


async def test_waiting_request_does_not_hold_up_a_reset(directory: Path) -> None:
    """With its quota used up, the device waits with a request in hand: a reset takes it away at once."""
    async with (
        start_backend(directory, "rng", "-m", "64", "-p", "600000") as backend,
        start_machine(directory, *rng_arguments(backend)) as machine,
    ):
        guest = await probe(machine, RNG)
        queue = await started(guest)
        await queue.request([], [64])
        await queue.add([], [64])
        await queue.kick()
        await guest.reset()
        assert await queue.used_index() == 1
        assert "not completed" not in backend.program.output()


async def test_quota_is_kept(directory: Path) -> None:
    async with (
        start_backend(directory, "rng", "-m", "100", "-p", "400") as backend,
        start_machine(directory, *rng_arguments(backend)) as machine,
    ):
        queue = await started(await probe(machine, RNG))
        began = trio.current_time()
        lengths = [len((await queue.request([], [length]))[0]) for length in (128, 64)]
        assert lengths == [100, 64]
        assert trio.current_time() - began >= 0.4


async def test_broken_ring_leaves_the_backend_serving(directory: Path, backend: RunningBackend) -> None:
    async with start_machine(directory, *rng_arguments(backend)) as machine:
        guest = await probe(machine, RNG)
        queue = await started(guest)
        await queue.add_head(77)
        await queue.kick()
        await until_printed(backend.program, "queue 0 is broken")
        queue = await started(guest)
        assert await queue.request([], [64])
    async with start_machine(directory, *rng_arguments(backend)) as machine:
        queue = await started(await probe(machine, RNG))
        assert await queue.request([], [64])


async def test_rule_17_memory_that_is_not_shared_is_named(directory: Path, backend: RunningBackend) -> None:
    (directory / "ram").write_bytes(b"")
    memory = f"memory-backend-file,id=mem,size=128M,mem-path={directory / 'ram'}"
    async with start_machine(directory, *rng_arguments(backend), memory=("-object", memory)) as machine:
        queue = await started(await probe(machine, RNG))
        await queue.add([], [64])
        await queue.kick()
        await until_printed(backend.program, "add share=on")
        assert await queue.used_index() == 0


async def test_two_devices_at_once(directory: Path) -> None:
    async with (
        start_backend(directory, "rng", name="one") as one,
        start_backend(directory, "rng", "-f", "/dev/zero", name="two") as two,
        start_machine(directory, *rng_arguments(one, "one"), *rng_arguments(two, "two")) as machine,
    ):
        queues = [await started(await probe(machine, RNG, number=number)) for number in range(2)]
        random, zeros = [await queue.request([], [64]) for queue in queues]
        assert any(random[0])
        assert zeros == [bytes(64)]


async def test_backend_that_connects_to_qemu(directory: Path) -> None:
    """Client mode: QEMU listens; whenever it has gone, the back-end looks for the next one."""
    socket = directory / "qemu.sock"
    chardev = ("-chardev", f"socket,id=rng,path={socket},server=on,wait=on")
    argv = [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "--connect", str(socket)]
    async with start_program(directory, argv, "client") as client:
        for count in range(1, 3):
            device = ("-device", "vhost-user-rng-pci,chardev=rng")
            async with start_machine(directory, *chardev, *device) as machine:
                queue = await started(await probe(machine, RNG))
                assert await queue.request([], [64])
            await until_printed(client, "the front-end has left", count)
            socket.unlink()
        client.terminate()
        with trio.fail_after(SECONDS):
            assert await client.wait() == 0

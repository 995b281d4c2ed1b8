"""A server, a host peer and a QEMU, started in that order for the test that asks."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

import ivshmem_server
from tests.rig.programs.server import RunningServer, start_server
from tests.rig.qemu.ivshmem import IvshmemDevice, doorbell_arguments, probe
from tests.rig.qemu.qemu import Machine, start_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True, scope="session")
def open_files() -> Iterator[None]:
    """Allow as many open files as may be: peers of one server hold an eventfd for each other's vectors.

    Servers and QEMUs inherit the limit. QEMU's default does not suffice for 2048 vectors.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[RunningServer]:
    """A server with 1 MiB and 2 vectors."""
    async with start_server(directory, "-l", "1M", "-n", "2") as running:
        yield running


@pytest.fixture
async def host(server: RunningServer) -> AsyncIterator[ivshmem_server.Peer]:
    """A host peer, the first client of the server: its id is 0."""
    async with ivshmem_server.connect(server.socket, vectors=2) as peer:
        yield peer


@pytest.fixture
async def machine(server: RunningServer, host: ivshmem_server.Peer) -> AsyncIterator[Machine]:
    """A QEMU with an ivshmem-doorbell device, the second client."""
    async with start_qemu(*doorbell_arguments(server.socket)) as running:
        yield running


@pytest.fixture
async def guest(machine: Machine) -> IvshmemDevice:
    """The machine's ivshmem device, set up as a guest's driver does it."""
    return await probe(machine)

"""A server, a host peer and a booted guest, started in that order for the test that asks."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import ivshmem_server
from tests.rig.guest import guest as rig
from tests.rig.programs.server import RunningServer, start_server
from tests.rig.qemu.ivshmem import doorbell_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VECTORS = 4


@dataclass(frozen=True)
class Member:
    """A guest that is a peer of the server. Its device, at PCI `address`, is bound to vfio-pci."""

    guest: rig.Guest
    id: int
    address: str

    async def run(self, actions: str) -> str:
        """Let ivshmem-guest do `actions` through vfio; return what it prints after its first line."""
        return (await self.guest.sh(f"ivshmem-guest vfio {actions}")).partition("\n")[2]

    async def listen(self, actions: str) -> rig.Command:
        """Start ivshmem-guest with `actions`; return once each interrupt of the device is counted."""
        command = await self.guest.start(f"ivshmem-guest vfio {actions}")
        await command.line()
        return command


@asynccontextmanager
async def join(server: RunningServer) -> AsyncIterator[Member]:
    """Boot a guest that joins `server`; kill it when the block ends."""
    async with rig.boot(*doorbell_arguments(server.socket, vectors=VECTORS)) as guest:
        address = await guest.sh("ivshmem-bind")
        state = (await guest.sh("ivshmem-guest vfio")).split()
        yield Member(guest, int(state[0].removeprefix("id=")), address)


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[RunningServer]:
    """A server with 1 MiB of memory."""
    async with start_server(directory, "-l", "1M", "-n", str(VECTORS), memfd=True) as running:
        yield running


@pytest.fixture
async def host(server: RunningServer) -> AsyncIterator[ivshmem_server.Peer]:
    """A host peer, the first client of the server: its id is 0."""
    async with ivshmem_server.connect(server.socket, vectors=VECTORS) as peer:
        yield peer


@pytest.fixture
async def member(server: RunningServer, host: ivshmem_server.Peer) -> AsyncIterator[Member]:
    """A guest, the second client of the server."""
    async with join(server) as joined:
        yield joined

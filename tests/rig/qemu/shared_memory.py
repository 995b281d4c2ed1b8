"""A QEMU without a guest whose memory a vhost-user back-end can map."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.rig.qemu.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.rig.qemu.qemu import Machine

_SHARED_MEMORY = ("-object", "memory-backend-memfd,id=mem,size=128M,share=on")

_HALT = b"\xf4"
_ROM_BYTES = 0x1_0000


@asynccontextmanager
async def start_machine(
    directory: Path,
    *arguments: str,
    memory: Sequence[str] = _SHARED_MEMORY,
    name: str = "machine",
    kind: str = "q35",
) -> AsyncIterator[Machine]:
    """Run a QEMU whose memory a back-end can share, and whose CPU is halted for good; the test drives it.

    QEMU starts a vhost device only while the machine runs. So this one does, with a firmware of
    nothing but `hlt` instructions. `memory` makes the memory backend `mem`, of 128 MiB. `kind` is q35,
    or pc where a device on the root bus is to be hot-plugged.
    """
    firmware = directory / f"{name}.rom"
    firmware.write_bytes(_HALT * _ROM_BYTES)
    options = ("-bios", str(firmware), *memory)
    async with start_qemu(*options, *arguments, machine=f"{kind},memory-backend=mem") as machine:
        await machine.qmp.execute("cont")
        yield machine

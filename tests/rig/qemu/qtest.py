"""A qtest client: reads and writes guest memory and I/O ports, as the guest's CPU would.

Protocol: one text line a command, answered by one line that starts with OK or FAIL
(QEMU, docs/devel/testing/qtest.rst).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import trio

from tests.rig.qemu.lines import ANSWER_SECONDS, LineChannel

if TYPE_CHECKING:
    from collections.abc import Callable

_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}


class QTestError(Exception):
    """QEMU refused a qtest command."""


class QTest:
    """The CPU's place in a QEMU that was started with -S and -qtest.

    Addresses are guest-physical. Numbers are little-endian, as on the x86 guest. Every method
    raises QemuGoneError when QEMU has ended. Safe to use from several tasks, and to cancel:
    a command is sent and answered as a whole or not at all.
    """

    def __init__(self, channel: LineChannel) -> None:
        self._channel = channel
        self._lock = trio.Lock()

    async def command(self, line: str) -> str:
        """Send one qtest command; return what follows the OK. Raises QTestError."""
        async with self._lock:
            with trio.fail_after(ANSWER_SECONDS, shield=True):
                await self._channel.send(line.encode())
                status, _, answer = (await self._channel.receive()).decode().partition(" ")
        if status != "OK":
            raise QTestError(f"{line[:80]}: {status} {answer}")
        return answer

    async def read(self, address: int, size: int = 4) -> int:
        """Load a number of `size` bytes (1, 2, 4 or 8)."""
        return int(await self.command(f"read{_SUFFIX[size]} {address:#x}"), 16)

    async def write(self, address: int, value: int, size: int = 4) -> None:
        """Store a number of `size` bytes (1, 2, 4 or 8)."""
        await self.command(f"write{_SUFFIX[size]} {address:#x} {value:#x}")

    async def read_bytes(self, address: int, size: int) -> bytes:
        """Read `size` bytes."""
        return base64.b64decode(await self.command(f"b64read {address:#x} {size:#x}"))

    async def write_bytes(self, address: int, data: bytes) -> None:
        """Write `data`, at least one byte."""
        await self.command(f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}")

    async def port_in(self, port: int, size: int = 4) -> int:
        """Read an I/O port of `size` bytes (1, 2 or 4)."""
        return int(await self.command(f"in{_SUFFIX[size]} {port:#x}"), 16)

    async def port_out(self, port: int, value: int, size: int = 4) -> None:
        """Write an I/O port of `size` bytes (1, 2 or 4)."""
        await self.command(f"out{_SUFFIX[size]} {port:#x} {value:#x}")

    async def wait_for(self, address: int, reached: Callable[[int], bool], *, seconds: float = 60) -> int:
        """Read the 32-bit word at `address` again and again; return it once `reached` says so.

        This is how a CPU would wait: QEMU reports no writes to guest memory. Raises
        trio.TooSlowError after `seconds`.
        """
        with trio.fail_after(seconds):
            while not reached(value := await self.read(address)):
                pass
        return value

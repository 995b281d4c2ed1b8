"""Which QEMU the tests use, and a machine of it that runs no guest: the test is the driver."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from tests.rig.debian import packages
from tests.rig.debian.apt import SetupError
from tests.rig.programs import process
from tests.rig.qemu.lines import ANSWER_SECONDS, QemuGoneError, connection
from tests.rig.qemu.pci import PciBus
from tests.rig.qemu.qmp import Qmp
from tests.rig.qemu.qtest import QTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


def qemu_command() -> list[str]:
    """Return the head of a command line of the QEMU that QEMU_COMPANION_PLATFORM selects.

    A test that needs QEMU and finds none fails: to skip it would hide that nothing was proved.
    """
    try:
        return packages.qemu()
    except SetupError as error:
        pytest.fail(str(error), pytrace=False)


class QemuStartError(Exception):
    """QEMU ended before it served qtest. Holds the exit `code` and what it printed as `output`."""

    def __init__(self, code: int, output: str) -> None:
        super().__init__(f"QEMU ended with code {code}: {output}")
        self.code = code
        self.output = output


@dataclass(frozen=True)
class Machine:
    """A QEMU whose CPUs stand still: `qtest` takes the CPU's place, `qmp` the operator's."""

    program: process.Program
    qtest: QTest
    qmp: Qmp
    bus: PciBus

    async def stopped(self, *, seconds: float = ANSWER_SECONDS) -> int:
        """Wait until QEMU ends by itself; return its exit code. Raises trio.TooSlowError."""
        with trio.fail_after(seconds):
            return await self.program.wait()


def machine_arguments(machine: str) -> list[str]:
    """Return the arguments of a bare `machine` with 128 MiB, stopped before its first instruction."""
    # Debian builds QEMU without accel=qtest; tcg with -S serves the same protocol.
    return [
        *("-machine", machine, "-accel", "tcg", "-S", "-m", "128M"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
    ]


@asynccontextmanager
async def start_qemu(
    *arguments: str, machine: str = "q35", launcher: Sequence[str] = ()
) -> AsyncIterator[Machine]:
    """Run a QEMU with `arguments` beside the bare machine's; kill it when the block ends.

    `machine` is q35, or pc where a device on the root bus is to be hot-plugged. `launcher` is a command
    that executes the one behind it. Raises QemuStartError if QEMU refuses to start.
    """
    with ExitStack() as sockets:
        qtest_channel, qtest_fd = connection(sockets)
        qmp_channel, qmp_fd = connection(sockets)
        argv = [
            *(*launcher, *qemu_command(), *machine_arguments(machine)),
            *("-chardev", f"socket,id=qtest,fd={qtest_fd.fileno()}"),
            *("-qtest", "chardev:qtest", "-qtest-log", "none"),
            *("-chardev", f"socket,id=qmp,fd={qmp_fd.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *arguments,
        ]
        async with process.start(argv, pass_fds=[qtest_fd.fileno(), qmp_fd.fileno()]) as program:
            qtest_fd.close()
            qmp_fd.close()
            qtest = QTest(qtest_channel)
            try:
                await qtest.read(0)
                qmp = await Qmp.negotiate(qmp_channel)
            except QemuGoneError:
                code = await program.wait()
                raise QemuStartError(code, program.output()) from None
            yield Machine(program, qtest, qmp, PciBus(qtest))

"""User Mode Linux, a vhost-user front-end without QEMU, and a shell in it.

`python -m tests.rig.guest.uml`, or `make uml`, builds it and says where it is.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.rig.debian import packages
from tests.rig.debian.apt import SetupError
from tests.rig.guest import image, uml_kernel
from tests.rig.guest.guest import Shell
from tests.rig.guest.tools import TOOLS
from tests.rig.programs import process
from tests.rig.programs.backend import start_backend
from tests.rig.qemu.lines import connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from tests.rig.programs.backend import RunningBackend
    from tests.rig.qemu.lines import LineChannel
    from vhost_user import DeviceId

#: It boots in a fifth of a second on an idle machine.
_BOOT_SECONDS = 60
_MEMORY = "128M"
_SHM = Path("/dev/shm")
#: Keeps the guest's libc to SSE: what more a CPU has, this kernel does not save (uml_kernel.py says why).
NO_AVX = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512BW,-AVX512VL,-ERMS"


SUITED = ("--without", "RING_PACKED", "--without", "ACCESS_PLATFORM")
"""What a back-end is started with, as this front-end turns on all that is offered and has neither."""


class Guest(Shell):
    """A running User Mode Linux. `boot()` makes one."""

    def __init__(self, program: process.Program, shell: LineChannel) -> None:
        super().__init__("User Mode Linux", shell)
        self.program = program

    async def kill(self) -> None:
        """Kill it and the processes that run its programs, as a crash or `kill -9` would."""
        self.program.kill()
        await self.program.wait()


def initramfs(names: Collection[str] = tuple(TOOLS)) -> Path:
    """Return what it boots, that of other guests with the tool sets `names`; make it first if need be.

    Raises SetupError.
    """
    return image.with_tools(image.load(), names)


def device(socket: Path, device_id: DeviceId) -> str:
    """Return the argument for the vhost-user device that listens at `socket`."""
    return f"virtio_uml.device={socket}:{device_id.value}"


@asynccontextmanager
async def boot(directory: Path, *arguments: str, tools: Collection[str] = ()) -> AsyncIterator[Guest]:
    """Boot it with `arguments`; kill it when the block ends. What it needs files for is in `directory`.

    The tool sets `tools` (tests/rig/guest/tools.py) are in it. If the block fails, its console goes to
    standard error. Raises SetupError where it is not built.
    """
    kernel = uml_kernel.built()
    if kernel is None:
        raise SetupError("User Mode Linux is not built here: run `make uml`")
    with ExitStack() as sockets:
        shell, shell_end = connection(sockets)
        fd = shell_end.fileno()
        argv = [
            *(str(kernel), f"mem={_MEMORY}", f"initrd={initramfs(tools)}", f"uml_dir={directory}"),
            *("con=null", "con0=null,fd:1", f"con1=fd:{fd},fd:{fd}", "companion.shell=/dev/tty1"),
            *("panic=-1", "quiet", NO_AVX, *arguments),
        ]
        memory = {"TMPDIR": str(_SHM)} if os.access(_SHM, os.W_OK) else {}
        async with process.start(argv, pass_fds=[fd], env=memory, own_group=True) as program:
            shell_end.close()
            guest = Guest(program, shell)
            with trio.fail_after(_BOOT_SECONDS):
                await guest.announced()
            yield guest


@asynccontextmanager
async def boot_with(
    directory: Path, device_id: DeviceId, name: str, *options: str, tools: Collection[str] = ()
) -> AsyncIterator[tuple[Guest, RunningBackend]]:
    """Boot it with one device, the back-end `name` with `options`; end both when the block ends.

    The tool sets `tools` are in it.
    """
    async with (
        start_backend(directory, name, *SUITED, *options) as backend,
        boot(directory, device(backend.socket, device_id), tools=tools) as guest,
    ):
        yield guest, backend


def main() -> int:
    """Build what it boots, where that is new; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and clean up
    try:
        kernel, archive = uml_kernel.build(), initramfs()
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    packages.say(f"User Mode Linux is {kernel}, and what it boots {archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

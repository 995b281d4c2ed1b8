"""A real Linux under a real QEMU, and a shell in it that tests and the demo use."""

from __future__ import annotations

import base64
import os
import secrets
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.rig.debian import packages
from tests.rig.guest import image
from tests.rig.programs import process
from tests.rig.qemu.lines import LineChannel, connection
from tests.rig.qemu.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

#: The name of the virtio port that src/init.sh takes commands from, and the word that makes it do so.
_SHELL = "companion.shell"
#: Selects QEMU's -accel, kvm or tcg; unset or empty for the best there is.
ACCELERATOR_VARIABLE = "QEMU_COMPANION_ACCEL"
#: A guest boots in about two seconds under TCG on an idle machine.
_BOOT_SECONDS = 120
_MEMORY = "256M"
#: Most take milliseconds; Python from the host's files takes some seconds, and machines may be busy.
_COMMAND_SECONDS = 180


class CommandError(Exception):
    """A command in the guest failed; holds its exit `status` and what remained of its `output`."""

    def __init__(self, command: str, status: int, output: str) -> None:
        super().__init__(f"the guest's command {command!r} ended with status {status}: {output}")
        self.status = status
        self.output = output


class BrokenKvmError(Exception):
    """The machine's KVM gave up on the guest's kernel; the text names the remedy."""


class Command:
    """A command that runs in the guest. `Guest.start()` makes one; its output is read to the end."""

    def __init__(self, channel: LineChannel, text: str) -> None:
        self.ended = False
        self._channel = channel
        self._text = text
        self._token = secrets.token_hex(8)

    async def send(self) -> None:
        """Hand the command to the guest's shell."""
        encoded = base64.b64encode(self._text.encode()).decode()
        await self._channel.send(f"{self._token} {encoded}".encode())

    async def tell(self, line: str) -> None:
        """Send a line to the command itself, for one that reads its standard output."""
        await self._channel.send(line.encode())

    def move(self, channel: LineChannel) -> None:
        """Go on in a guest that has migrated and has another channel now."""
        self._channel = channel

    async def line(self) -> str:
        """Return the next line of output. Raises CommandError if there is none: the command has ended."""
        line, status = await self._receive()
        if status is not None:
            raise CommandError(self._text, status, line)
        return line

    async def finish(self) -> str:
        """Wait for the end; return the output not read yet. Raises CommandError if the status is not 0."""
        lines, status = [], None
        while status is None:
            line, status = await self._receive()
            lines.append(line)
        # Before its end mark the guest starts a new line, also where one was started already.
        output = "\n".join(lines[:-1]).removesuffix("\n")
        if status:
            raise CommandError(self._text, status, output)
        return output

    async def _receive(self) -> tuple[str, int | None]:
        """Return the next line, and the exit status if that line is the end mark."""
        line = (await self._channel.receive()).decode(errors="replace")
        word, _, status = line.partition(" ")
        if word != self._token:
            return line, None
        self.ended = True
        return "", int(status)


class Shell:
    """The shell of a running guest, at the other end of `channel`: src/init.sh.

    Every method raises lines.QemuGoneError when the guest's machine has ended, and
    trio.TooSlowError when the guest does not answer in time.
    """

    def __init__(self, name: str, channel: LineChannel) -> None:
        self.name = name
        self._shell = channel
        self._command: Command | None = None

    async def start(self, command: str) -> Command:
        """Start a shell command; the one before must have ended."""
        if self._command is not None and not self._command.ended:
            raise RuntimeError(f"{self.name} still runs another command")
        self._command = Command(self._shell, command)
        await self._command.send()
        return self._command

    async def sh(self, command: str, *, seconds: float = _COMMAND_SECONDS) -> str:
        """Run a shell command; return what it printed, without the last line break. Raises CommandError."""
        with trio.fail_after(seconds):
            return await (await self.start(command)).finish()

    async def announced(self) -> None:
        """Wait until the shell says, after a boot, that it takes commands."""
        self._command = None
        while not (await self._shell.receive()).startswith(b"READY"):
            pass


class Guest(Shell):
    """A running guest in a QEMU. `boot()` makes one."""

    def __init__(self, name: str, program: process.Program, qmp: Qmp, shell: LineChannel) -> None:
        super().__init__(name, shell)
        self.program = program
        self.qmp = qmp

    def arrived(self, source: Guest) -> None:
        """Take over the command that runs, once the guest has migrated from `source` to here."""
        self._command = source._command
        if self._command is not None:
            self._command.move(self._shell)

    async def reset(self) -> None:
        """Press the reset button; return when the guest has booted again."""
        await self.qmp.execute("system_reset")
        await self.ready()

    async def reboot(self) -> None:
        """Let the guest reboot itself; return when it has booted again."""
        await self.start("reboot -f")
        await self.ready()

    async def ready(self) -> None:
        """Wait until the guest has booted and takes commands. Raises BrokenKvmError."""
        with trio.fail_after(_BOOT_SECONDS):
            while not await self._is_ready():
                if (await self.qmp.execute("query-status"))["status"] == "internal-error":
                    raise BrokenKvmError(f"KVM cannot run {self.name} here: set {ACCELERATOR_VARIABLE}=tcg")

    async def _is_ready(self) -> bool:
        """Wait a second; return whether the guest's shell has announced itself."""
        with trio.move_on_after(1):
            await self.announced()
            return True
        return False

    async def kill(self) -> None:
        """Kill QEMU, as a crash or `kill -9` would."""
        self.program.kill()
        await self.program.wait()


def accelerator() -> str:
    """Return the -accel to use: what ACCELERATOR_VARIABLE says, else KVM where it is the hardware's."""
    # With kvm_pvm there is a /dev/kvm, under which Debian's kernels do not run.
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists()
    return os.environ.get(ACCELERATOR_VARIABLE) or ("kvm" if usable else "tcg,thread=multi")


def machine_arguments(
    *,
    kernel_options: str = "",
    shared: bool = False,
    tools: Collection[str] = (),
) -> list[str]:
    """Return the QEMU command line of a guest, up to its devices. Raises packages.SetupError.

    The machine has an interrupt-remapping IOMMU: through it, vfio-pci hands MSI-X to user space.
    `shared` memory is what a vhost-user back-end needs. The tool sets `tools` (tests/rig/guest/tools.py)
    are in the guest.
    """
    guest = image.load()
    initramfs = image.with_tools(guest, tools)
    accel = accelerator()
    memory = f"memory-backend-memfd,id=mem,size={_MEMORY},share={'on' if shared else 'off'}"
    return [
        *packages.qemu(),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35,kernel-irqchip=split,memory-backend=mem", "-device", "intel-iommu,intremap=on"),
        *("-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-m", _MEMORY, "-object", memory),
        *("-kernel", str(guest.kernel), "-initrd", str(initramfs)),
        *("-append", f"console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on {kernel_options}".rstrip()),
        *("-serial", "stdio"),
    ]


@asynccontextmanager
async def boot(
    *devices: str,
    name: str = "guest",
    kernel_options: str = "",
    shared: bool = False,
    tools: Collection[str] = (),
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Guest]:
    """Boot a guest with the QEMU arguments `devices`, which may name descriptors of `pass_fds`.

    It is killed when the block ends. `shared` makes its memory one that a vhost-user back-end can map;
    `tools` are the tool sets (tests/rig/guest/tools.py) that are in it. Raises packages.SetupError,
    BrokenKvmError, and lines.QemuGoneError if QEMU refuses to start. If the block fails, the guest's
    console goes to standard error.
    """
    options = f"{kernel_options} {_SHELL}"
    argv = machine_arguments(kernel_options=options, shared=shared, tools=tools)
    async with _start(argv, devices, name, pass_fds) as guest:
        await guest.ready()
        yield guest


@asynccontextmanager
async def await_migration(*devices: str, name: str = "guest") -> AsyncIterator[Guest]:
    """Start a QEMU that waits for a guest booted as `shared` with the same devices; kill it in the end.

    QMP's migrate-incoming is to say where it is to come from. Raises as `boot()` does.
    """
    argv = machine_arguments(kernel_options=f" {_SHELL}", shared=True)
    async with _start([*argv, "-incoming", "defer"], devices, name) as guest:
        yield guest


@asynccontextmanager
async def _start(
    argv: Sequence[str], devices: Sequence[str], name: str, pass_fds: Sequence[int] = ()
) -> AsyncIterator[Guest]:
    with ExitStack() as sockets:
        shell, shell_fd = connection(sockets)
        qmp, qmp_fd = connection(sockets)
        argv = [
            *argv,
            *("-chardev", f"socket,id=shell,fd={shell_fd.fileno()}", "-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=shell,name={_SHELL}"),
            *("-chardev", f"socket,id=qmp,fd={qmp_fd.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *devices,
        ]
        ours = [shell_fd.fileno(), qmp_fd.fileno()]
        async with process.start(argv, pass_fds=[*ours, *pass_fds]) as program:
            shell_fd.close()
            qmp_fd.close()
            yield Guest(name, program, await Qmp.negotiate(qmp), shell)

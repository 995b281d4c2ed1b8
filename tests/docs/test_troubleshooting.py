"""docs/troubleshooting.md is true: the lines that it marks with a star are provoked, and read as it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.docs.documents import read
from tests.qemu.virtio_pci import probe
from tests.rig.programs import process
from tests.rig.programs.backend import start_backend
from tests.rig.qemu.qemu import qemu_command
from tests.rig.qemu.qmp import QmpError
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.rig.programs.backend import RunningBackend
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

PAGE = read("troubleshooting.md")
SECONDS = 60
RNG = 4
PROGRAM = "vhost-user run rng: "


def lines(heading: str) -> list[str]:
    """Return the lines that the page quotes below a heading, which has a star."""
    section = re.split(r"^#+ ", PAGE.split(f"# {heading} (*)\n")[1], flags=re.MULTILINE)[0]
    found = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert found
    return found


async def output_of(directory: Path, arguments: str, *, until: str = "") -> str:
    """Return what Debian's QEMU says, up to its end or to `until`; the page's socket is in `directory`."""
    argv = [*qemu_command(), "-display", "none", "-S", *shlex.split(arguments)]
    argv = [each.replace("/tmp/rng.sock", f"{directory}/rng.sock") for each in argv]
    async with process.start(argv) as qemu:
        with trio.fail_after(SECONDS):
            while True:
                ended = qemu.ended
                said = qemu.output().replace(str(directory), "/tmp")
                if ended or (until and until in said):
                    return said
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("heading", "backend", "arguments"),
    [
        (
            "Failed to connect",
            "",
            "-chardev socket,path=/tmp/rng.sock,id=c -device vhost-user-rng-pci,chardev=c",
        ),
        (
            "Failed to set msg fds",
            "rng",
            "-chardev socket,path=/tmp/rng.sock,id=c,reconnect=1 -device vhost-user-rng-pci,chardev=c",
        ),
        (
            "The maximum number of queues",
            "disk",
            "-smp 4 -chardev socket,path=/tmp/rng.sock,id=c -device vhost-user-blk-pci,chardev=c",
        ),
        (
            "Machine memory size does not match",
            "",
            "-m 1G -object memory-backend-memfd,id=mem,size=512M,share=on -machine memory-backend=mem",
        ),
        (
            "QEMU waits and says so",
            "",
            "-chardev socket,path=/tmp/rng.sock,server=on,id=c -device vhost-user-rng-pci,chardev=c",
        ),
    ],
)
async def test_qemu_does_not_start(directory: Path, heading: str, backend: str, arguments: str) -> None:
    expected = lines(heading)
    until = expected[0] if "waits" in heading else ""
    async with running(directory, backend):
        said = await output_of(directory, arguments, until=until)
    for line in expected:
        assert line in said


@pytest.mark.parametrize(("backend", "device", "number"), [("rng", "blk", 0), ("disk", "rng", 1)])
async def test_backend_is_another_device(directory: Path, backend: str, device: str, number: int) -> None:
    line = lines("The back-end is another device")[number]
    arguments = f"-chardev socket,path=/tmp/rng.sock,id=c -device vhost-user-{device}-pci,chardev=c"
    async with running(directory, backend):
        assert line in await output_of(directory, arguments, until=line)


@asynccontextmanager
async def running(directory: Path, backend: str) -> AsyncIterator[None]:
    """Run an rng or a disk, or nothing, where the page has its socket."""
    disk = directory / "disk.img"
    await trio.Path(disk).write_bytes(bytes(4096))
    options = {"rng": ["rng"], "disk": ["blk", "--blk-file", str(disk), "--num-queues", "1"]}.get(backend)
    if options is None:
        yield
        return
    async with start_backend(directory, *options, name="rng"):
        yield


@pytest.mark.parametrize(
    ("heading", "memory"),
    [
        ("The guest's memory is not shared", "memory-backend-memfd,id=mem,size=128M,share=off"),
        ("No memory backend", "memory-backend-ram,id=mem,size=128M"),  # as QEMU makes it by itself
    ],
)
async def test_device_does_nothing(directory: Path, heading: str, memory: str) -> None:
    expected = lines(heading)
    device = ["-device", "vhost-user-rng-pci,chardev=backend"]
    async with (
        start_backend(directory, "rng") as backend,
        start_machine(directory, *backend.chardev(), *device, memory=("-object", memory)) as machine,
    ):
        guest = await probe(machine, RNG)
        await guest.negotiate(0)
        queue = await guest.set_up_queue()
        await guest.start()
        await queue.add([], [16])
        await queue.kick()
        with trio.fail_after(SECONDS):
            while not all(line in said(backend, machine) for line in expected):  # noqa: ASYNC110
                await trio.sleep(0.01)


def said(backend: RunningBackend, machine: Machine) -> str:
    return backend.program.output() + machine.program.output()


async def test_another_qemu_waits(directory: Path) -> None:
    (line,) = lines("QEMU waits and says nothing")
    device = ["-device", "vhost-user-rng-pci,chardev=backend"]
    async with (
        start_backend(directory, "rng") as backend,
        start_machine(directory, *backend.chardev(), *device),
    ):
        assert line not in backend.program.output()
        second = [*qemu_command(), "-display", "none", "-S", *backend.chardev(), *device]
        async with process.start(second):
            with trio.fail_after(SECONDS):
                while line not in backend.program.output():  # noqa: ASYNC110 -- another process tells
                    await trio.sleep(0.01)


@pytest.mark.parametrize("device", ["rng", "i2c --chip lm75@0x48", "gpio --line lamp", "vsock --uds-path v"])
async def test_migration_is_refused(directory: Path, device: str) -> None:
    (line,) = lines("Migration is refused")
    name, *options = device.replace("--uds-path v", f"--uds-path {directory}/v").split()
    expected = line.removeprefix("Error: ").replace("vhost-user-rng", f"vhost-user-{name}")
    async with start_backend(directory, name, *options) as backend:
        model = ["-device", f"vhost-user-{name}-pci,chardev=backend,addr=2"]
        async with start_machine(directory, *backend.chardev(), *model) as machine:
            with pytest.raises(QmpError, match=re.escape(expected)):
                await machine.qmp.execute("migrate", uri="exec:cat >/dev/null")


def test_backend_does_not_start(directory: Path) -> None:
    table = PAGE.split("| line (*) |")[1].partition("\n\n")[0]
    expected = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    (directory / "debian.qcow2").write_bytes(b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))
    disks = ("blk -s s -b disk.img", "blk -s s -b debian.qcow2")
    commands = ("rng -s /none/rng.sock", *disks, "rng", "rgn -s s", "nothing:Here -s s")
    argv = [sys.executable, "-m", "vhost_user.program.main", "run"]
    programs = [
        subprocess.Popen([*argv, *command.split()], cwd=directory, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = "".join(program.communicate(timeout=SECONDS)[1] for program in programs)
    assert {program.returncode for program in programs} <= {1, 2}
    needs_another_program = [line for line in expected if "in use by another program" in line]
    assert [line for line in expected if line not in said] == needs_another_program


async def test_socket_is_in_use(directory: Path) -> None:
    async with running(directory, "rng"):
        argv = [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "-s", f"{directory}/rng.sock"]
        async with process.start(argv) as second:
            with trio.fail_after(SECONDS):
                assert await second.wait() == 1
            said = second.output().replace(str(directory), "/tmp").removeprefix(PROGRAM).strip()
    assert f"| `{said}` |" in PAGE


async def test_disk_is_in_use(directory: Path) -> None:
    (directory / "disk.img").write_bytes(bytes(512))
    disk = ["--blk-file", f"{directory}/disk.img"]
    async with start_backend(directory, "blk", *disk):
        argv = [
            sys.executable,
            "-m",
            "vhost_user.program.main",
            "run",
            "blk",
            "-s",
            f"{directory}/other.sock",
            *disk,
        ]
        async with process.start(argv) as second:
            with trio.fail_after(SECONDS):
                assert await second.wait() == 1
            said = second.output().replace(f"{directory}/", "").partition("run blk: ")[2].strip()
    assert f"| `{said}` |" in PAGE


def test_every_star_is_provoked_here() -> None:
    starred = re.findall(r"^#+ (.*) \(\*\)$", PAGE, re.MULTILINE)
    assert len(starred) >= 8
    source = Path(__file__).read_text()
    for heading in starred:
        assert f'"{heading}"' in source

"""A real libvirtd with the platform's QEMU, which runs as libvirt's own user."""

from __future__ import annotations

import os
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.rig.debian import packages, platforms
from tests.rig.guest import image
from tests.rig.guest.guest import Shell
from tests.rig.programs import process
from tests.rig.programs.backend import until_listening
from tests.rig.qemu.lines import LineChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QEMU_ID = 64055
"""The number of the user and the group that QEMU runs as: those that Debian reserves for libvirt-qemu."""
KVM_ID = 104
"""The number of the group that it has besides."""

_PACKAGES = (
    *("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "seabios"),
    *("qemu-system-gui-", "qemu-block-extra-"),
)
_SCRIPT = Path(__file__).with_name("libvirtd.sh")
_COMMAND_SECONDS = 180

_QEMU_CONF = """\
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_PASSWD = f"root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:{QEMU_ID}:{QEMU_ID}::/var/lib/libvirt:/bin/false\n"
_GROUP = f"root:x:0:\nlibvirt-qemu:x:{QEMU_ID}:\nkvm:x:{KVM_ID}:libvirt-qemu\n"

_DOMAIN = """\
<domain type="qemu">
  <name>guest</name>
  <memory unit="MiB">256</memory>
  <os>
    <type arch="x86_64" machine="{machine}">hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 no_timer_check companion.shell</cmdline>
  </os>
  <features><acpi /></features>
  <cpu mode="maximum" />
  <devices>
    <channel type="unix">
      <source mode="connect" path="{shell}" />
      <target type="virtio" name="companion.shell" />
    </channel>
    <memballoon model="none" />
    {devices}
  </devices>
  {elements}
</domain>
"""


def unavailable() -> str:
    """Return why libvirtd cannot be run here; "" if it can."""
    return (
        "" if os.geteuid() == 0 else "libvirtd gives QEMU another user, which only root can: run it as root"
    )


class VirshError(Exception):
    """The text is what virsh printed."""


@dataclass(frozen=True)
class Libvirt:
    """A running libvirtd, and where the shells of its guests connect to."""

    directory: Path
    root: Path
    _shells: trio.SocketListener
    _connections: ExitStack

    async def virsh(self, *arguments: str) -> str:
        """Run virsh; return what it printed. Raises VirshError."""
        uri = f"qemu+unix:///system?socket={self.directory}/libvirt-sock"
        argv = [str(packages.program(self.root, "virsh")), "--quiet", "--connect", uri, *arguments]
        with trio.fail_after(_COMMAND_SECONDS):
            done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode:
            raise VirshError(done.stderr.decode())
        return done.stdout.decode()

    async def define(self, elements: str, *, devices: str = "", machine: str = "q35") -> None:
        """Define the domain `guest`, with `elements` and `devices` besides what it boots with."""
        kernel = image.load()
        text = _DOMAIN.format(
            machine=machine,
            kernel=kernel.kernel,
            initramfs=kernel.initramfs,
            shell=self.directory / "shell",
            devices=devices,
            elements=elements,
        )
        await self.virsh("define", self.file(text))

    def file(self, text: str) -> str:
        """Return the path of a file for virsh to read, with `text`."""
        path = self.directory / "virsh.xml"
        path.write_text(text)
        return str(path)

    async def booted(self) -> Shell:
        """Wait for the guest that was started; return its shell, which is closed with libvirtd."""
        shell = await self.resumed()
        with trio.fail_after(_COMMAND_SECONDS):
            await shell.announced()
        return shell

    async def resumed(self) -> Shell:
        """Wait for a QEMU's connection; return the shell of a guest that was booted elsewhere."""
        with trio.fail_after(_COMMAND_SECONDS):
            stream = await self._shells.accept()
        self._connections.callback(stream.socket.close)
        return Shell("guest", LineChannel(stream.socket))


@asynccontextmanager
async def start_libvirtd(directory: Path) -> AsyncIterator[Libvirt]:
    """Run libvirtd, of which all is in `directory`; with the block, its guests end. Raises SetupError."""
    root = packages.unpacked(platforms.selected(), _PACKAGES)
    kernel = image.load().kernel
    directory.chmod(0o755)
    for name, text in {
        "qemu.conf": _QEMU_CONF,
        "libvirtd.conf": f'auth_unix_rw = "none"\nunix_sock_dir = "{directory}"\n',
        "passwd": _PASSWD,
        "group": _GROUP,
    }.items():
        (directory / name).write_text(text)
    with ExitStack() as connections, trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(directory / "shell"))
        (directory / "shell").chmod(0o666)
        sock.listen()
        private = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
        argv = [*private, str(_SCRIPT), str(root), str(directory), str(kernel.parent)]
        async with process.start(argv):
            await until_listening(directory / "libvirt-sock")
            yield Libvirt(directory, root, trio.SocketListener(sock), connections)

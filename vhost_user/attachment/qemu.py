"""The QEMU of this machine: its version, and the devices that it has."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from protocol.virtio.ids import DeviceId

if TYPE_CHECKING:
    from vhost_user.device import VirtioDevice

DEFAULT_PROGRAM = f"qemu-system-{platform.machine()}"

_SECONDS = 20


@dataclass(frozen=True)
class Qemu:
    """What a QEMU says of itself."""

    program: str
    version: str
    """None installed: ""."""
    models: frozenset[str] = frozenset()
    """The devices that it has."""
    netdevs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What people call it."""
        return f"QEMU {self.version}"

    def attaches(self, device: type[VirtioDevice]) -> bool:
        """Tell whether it has a front-end for `device`."""
        needed = {"vhost-user"} if device.device_id is DeviceId.NET else set()
        return device.qemu_model() in self.models and needed <= self.netdevs


def ask(program: str) -> Qemu:
    """Ask a QEMU what it has; what cannot be run, or is none, has no version."""
    version = ask_version(program)
    if not version:
        return Qemu(program, "")
    models = re.findall(r'^name "([^"]+)"', _output(program, "-device", "help"), re.MULTILINE)
    netdevs = _output(program, "-machine", "none", "-netdev", "help").split()
    return Qemu(program, version, frozenset(models), frozenset(netdevs))


@cache
def ask_version(program: str) -> str:
    """Return the version of a QEMU, such as 7.2.22; "" for what cannot be run, or is none."""
    version = re.search(r"^QEMU emulator version (\d\S*)", _output(program, "--version"))
    return version[1] if version else ""


def _output(program: str, *arguments: str) -> str:
    try:
        result = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout

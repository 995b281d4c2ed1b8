"""The QEMU of this machine: its version, and the devices that it has."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache

from protocol.virtio.ids import DeviceId

DEFAULT_PROGRAM = f"qemu-system-{platform.machine()}"

_SECONDS = 20


@dataclass(frozen=True)
class Qemu:
    """The abilities of a QEMU, as it prints them."""

    program: str
    version: str
    """"" where there is no such QEMU."""
    models: frozenset[str] = frozenset()
    """The names of its devices."""
    netdevs: frozenset[str] = frozenset()
    """The kinds of -netdev that it has."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"QEMU {self.version}"

    def attaches(self, model: str, device_id: DeviceId) -> bool:
        """Tell whether it has the front-end `model` for a type of device, and what else that needs."""
        needed = {"vhost-user"} if device_id is DeviceId.NET else set()
        return model in self.models and needed <= self.netdevs


def ask(program: str) -> Qemu:
    """Ask the QEMU `program` for its devices; one that cannot be run, or is not a QEMU, has no version."""
    version = ask_version(program)
    if not version:
        return Qemu(program, "")
    models = re.findall(r'^name "([^"]+)"', _output(program, "-device", "help"), re.MULTILINE)
    netdevs = _output(program, "-machine", "none", "-netdev", "help").split()
    return Qemu(program, version, frozenset(models), frozenset(netdevs))


@cache
def ask_version(program: str) -> str:
    """Return the version of a QEMU, such as 7.2.22; "" where it cannot be run, or is not one."""
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

"""The QEMU of this machine, as it says itself; a program that is not one has no version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from vhost_user.device_program.qemu import Qemu, ask, ask_version

if TYPE_CHECKING:
    from pathlib import Path

NAMES = """
name "vhost-user-rng-pci", bus PCI
name "virtio-net-pci", bus PCI, alias "virtio-net"
"""


def fake(directory: Path, version: str) -> str:
    """Return the path of a program that prints what a QEMU prints."""
    path = directory / "qemu"
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in --version) echo "{version}";; "-device help") cat <<END\n{NAMES}END\n;;\n'
        '*netdev*) echo "tap"; echo "vhost-user";; esac\n'
    )
    path.chmod(0o700)
    return str(path)


def test_qemu_says_what_it_has(directory: Path) -> None:
    qemu = ask(fake(directory, "QEMU emulator version 9.2.1 (Debian 1:9.2.1)"))
    assert (qemu.version, qemu.name) == ("9.2.1", "QEMU 9.2.1")
    assert qemu.models == {"vhost-user-rng-pci", "virtio-net-pci"}
    assert qemu.netdevs >= {"tap", "vhost-user"}


@pytest.mark.parametrize("version", ["cat (GNU coreutils) 9.1", "QEMU emulator version", ""])
def test_program_that_is_not_a_qemu_has_no_version(directory: Path, version: str) -> None:
    assert ask_version(fake(directory, version)) == ""
    assert ask("no-such-qemu").version == ""


@pytest.mark.parametrize(
    ("model", "device_id", "netdevs", "attaches"),
    [
        ("vhost-user-rng-pci", DeviceId.RNG, set(), True),
        ("vhost-user-i2c-pci", DeviceId.I2C_ADAPTER, set(), False),
        ("virtio-net-pci", DeviceId.NET, {"vhost-user"}, True),
        ("virtio-net-pci", DeviceId.NET, {"tap"}, False),
    ],
)
def test_device_is_attached_by_its_model(
    model: str, device_id: DeviceId, netdevs: set[str], attaches: bool
) -> None:
    qemu = Qemu("q", "9.2", frozenset({"vhost-user-rng-pci", "virtio-net-pci"}), frozenset(netdevs))
    assert qemu.attaches(model, device_id) is attaches

"""--print-qemu-args."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.program.cli_program import OWN_DEVICE, SECONDS, refusal, run

if TYPE_CHECKING:
    from pathlib import Path


def test_print_qemu_args() -> None:
    result = run("run", "rng", "--socket-path", "/tmp/with space,comma", "--print-qemu-args")
    assert result.returncode == 0
    assert "memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem" in result.stdout
    assert "-chardev 'socket,id=rng0,path=/tmp/with space,,comma'" in result.stdout
    assert result.stdout.endswith("-device vhost-user-rng-pci,chardev=rng0\n")


def test_print_qemu_args_for_a_client() -> None:
    result = run("run", "rng", "--connect", "/tmp/a", "--print-qemu-args")
    assert "path=/tmp/a,server=on" in result.stdout


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("examples.scripted_rng:ScriptedRng", "-device vhost-user-rng-pci,chardev=scripted-rng0\n"),
        (
            "examples.numbered_disk:NumberedDisk",
            "-device vhost-user-blk-pci,num-queues=1,chardev=numbered-disk0\n",
        ),
        (
            "tests.vhost_user.echo:Echo",
            "-device vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=16,chardev=echo0\n",
        ),
    ],
)
def test_print_qemu_args_for_devices_of_ones_own(device: str, expected: str) -> None:
    """QEMU's device is that of the type; for a type that QEMU does not know it is one for tests."""
    result = run("run", device, "-s", "/tmp/a", "--print-qemu-args")
    assert result.stdout.endswith(expected)


@pytest.mark.parametrize(
    ("version", "chardev"),
    [
        ("9.1.50", "reconnect=1"),
        ("9.2.0", "reconnect-ms=1000"),
        ("10.0.13 (Debian 1:10.0)", "reconnect-ms=1000"),
    ],
)
def test_disk_is_to_be_connected_to_again_as_this_qemu_has_it(
    directory: Path, version: str, chardev: str
) -> None:
    qemu = directory / "qemu"
    qemu.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    qemu.chmod(0o755)
    argv = ["run", "blk", "-s", "/tmp/a", "-b", "x", "--print-qemu-args", "--qemu", str(qemu)]
    assert f"-chardev socket,id=blk0,path=/tmp/a,{chardev} " in run(*argv).stdout


def test_disk_without_a_qemu_to_ask() -> None:
    argv = ["blk", "-s", "/tmp/a", "-b", "x", "--print-qemu-args"]
    program = [sys.executable, "-m", "vhost_user.program.main", "run", *argv]
    result = subprocess.run(
        program, env=os.environ | {"PATH": ""}, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert ",reconnect-ms=1000 " in result.stdout
    line = refusal("run", *argv, "--qemu", "no-such-qemu")
    assert line.endswith(
        "there is no QEMU 'no-such-qemu' here to be asked for its version; give another --qemu"
    )


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("ByMethod", "num_vqs=2,config_size=24,chardev=by-method--1st0"),
        ("ByObject", "num_vqs=3,config_size=24,chardev=device1st0"),
        ("Without", "num_vqs=2,chardev=echo0"),
    ],
)
def test_qemu_is_told_how_a_device_of_ones_own_is(device: str, expected: str) -> None:
    result = run("run", f"tests.qemu.own_devices:{device}", "-s", "/tmp/a", "--print-qemu-args")
    assert result.stdout.endswith(f"-device vhost-user-test-device-pci,virtio-id=3,{expected}\n")


def test_configuration_space_that_cannot_be_read_is_said_in_one_line(directory: Path) -> None:
    (directory / "mine.py").write_text(
        f"{OWN_DEVICE}\n    def read_config(self, offset, size):\n        1 // 0\n"
    )
    result = run("run", "mine:Hello", "-s", "/tmp/a", "--print-qemu-args", cwd=directory)
    assert result.returncode == 1
    assert result.stderr == (
        "vhost-user run mine:Hello: the configuration space of Hello cannot be read: ZeroDivisionError: "
        "integer division or modulo by zero; override qemu_device() to say its config_size\n"
    )

"""`vhost-user list` prints what it finds."""

from __future__ import annotations

import subprocess

import pytest

from tests.vhost_user.program.cli_program import run
from vhost_user.devices import DEVICES


@pytest.mark.parametrize("program", ["no-such-qemu", "cat"])  # cat has a version, too
def test_list_without_a_qemu(program: str) -> None:
    result = run("list", "--qemu", program)
    assert result.returncode == 0
    _, _, rng = result.stdout.partition("\nrng: ")
    assert rng.splitlines()[:3] == [
        "Random bytes for a guest, from a file of the host.",
        f"    QEMU: vhost-user-rng-pci; there is no QEMU '{program}' here to be asked whether it has it",
        "    --filename FILE  --period MS  --max-bytes N  --socket-count N",
    ]


@pytest.mark.qemu
def test_list_tells_what_this_machines_qemu_attaches() -> None:
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    _, _, number = version.stdout.partition(" version ")
    listed = dict(each.split(": ", 1) for each in run("list").stdout.split("\n\n"))
    assert set(listed) == set(DEVICES)
    attached = f"which QEMU {number.split()[0]} has"
    assert f"vhost-user-blk-pci, {attached}\n" in listed["blk"]

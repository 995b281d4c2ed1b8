"""The options of vhost-user-blk."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.program.cli_program import run

if TYPE_CHECKING:
    from pathlib import Path

DEVICE = ("run", "vhost_user.devices.blk:Blk")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the following arguments are required: -b/--blk-file"),
        (["-b", "/no/such/disk"], "create it first, as with: truncate -s 1G /no/such/disk"),
        (["-b", "/dev/null"], "neither a file nor a block device"),
        (["-b", ""], "cannot open '': No such file or directory; give a raw file or a block device"),
        (["-b", "DISK", "--fault-file", "/bin/true"], "/bin/true is not a text; give a file of rules"),
        (["-b", "DISK", "--num-queues", "0"], "'0' is not a number from 1 to"),
        (["-b", "DISK", "--queue-size", "100"], "'100' is not a power of two from 4 to 32768"),
        (["-b", "DISK", "--cache", "writethrough"], "invalid choice: 'writethrough'"),
        (["-b", "DISK", "--logical-block-size", "256"], "'256' is not a power of two from 512 to 4096"),
        (["-b", "DISK", "--logical-block-size", "1536"], "'1536' is not a power of two from 512 to 4096"),
        (["-b", "DISK", "--logical-block-size", "8192"], "'8192' is not a power of two from 512 to 4096"),
        (["-b", "DISK", "--logical-block-size", "4096"], "has not one whole block; give it a size"),
        (["-b", "DISK", "--serial", "x" * 21], "is not a text of at most 20 ASCII characters"),
        (["-b", "DISK", "--serial", "ü"], "is not a text of at most 20 ASCII characters"),
        (["-b", "DISK", "--format", "qcow2"], "'qcow2' cannot be served, only raw can; convert it with"),
        (["-b", "QCOW2"], "is a qcow2 image, no raw disk, and a guest's writes would destroy it"),
        (["-b", "DISK", "--fault", "read:explode"], "'explode' is not an action"),
        (["-b", "DISK", "--fault-file", "/no/such"], "an empty file is one without faults"),
        (["-b", "DISK", "--fault-file", "DISK"], "is not an operation"),
        (["-b", "DISK", "--fault", "any:stuck", "--fault-file", "DISK"], "not allowed with argument"),
    ],
)
def test_wrong_use_ends_in_one_line_that_says_what_to_do(
    tmp_path: Path, options: list[str], said: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 512)
    container = tmp_path / "container"
    container.write_bytes(b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))
    files = {"DISK": str(disk), "QCOW2": str(container)}
    done = run(
        *DEVICE, "--socket-path", f"{tmp_path}/socket", *(files.get(option, option) for option in options)
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert re.fullmatch(r"vhost-user[^\n]+\n", done.stderr), done.stderr
    assert said in done.stderr


def test_help_names_every_option() -> None:
    out = run(*DEVICE, "--help").stdout
    names = "blk-file format read-only num-queues queue-size cache logical-block-size serial fault fault-file"
    for option in ["-b", "-r", *(f"--{name}" for name in names.split())]:
        assert re.search(rf"(?<![\w-]){option}\b", out), option


def test_capabilities_are_those_of_qemu_s_schema() -> None:
    done = run(*DEVICE, "--print-capabilities", "--nonsense")
    assert json.loads(done.stdout) == {"type": "block", "features": ["blk-file", "read-only"]}


def test_qemu_arguments_match_the_options(tmp_path: Path) -> None:
    options = ("--num-queues", "2", "--queue-size", "256", "--format", "raw", "--print-qemu-args")
    done = run(*DEVICE, "--socket-path", f"{tmp_path}/socket", "-b", "disk", *options)
    assert "-device vhost-user-blk-pci,num-queues=2,queue-size=256,chardev=" in done.stdout
    done = run(*DEVICE, "--socket-path", f"{tmp_path}/socket", "-b", "disk", "--print-qemu-args")
    assert "-device vhost-user-blk-pci,queue-size=128,chardev=" in done.stdout

"""ivshmem-client inspect: shared memory through the C definitions in an ELF file."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

import ivshmem_server
from tests.ivshmem_server.clients import serving
from tests.ivshmem_server.program.client_program import error, output, running

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
#include <stdint.h>
enum state { IDLE, BUSY = 3 };
struct mailbox { uint32_t head; enum state state; char name[8]; uint8_t low : 3, high : 5; } mailbox;
struct slot { uint16_t id, length; };
extern struct slot slots[]; struct slot slots[3];
"""


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "mailbox.o"
    subprocess.run(["gcc", "-g", "-c", "-x", "c", "-o", path, "-"], input=SOURCE.encode(), check=True)
    return path


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    content = struct.pack("<II8sB", 77, 3, b"host", 0b10101_010)
    path.write_bytes(bytes(32) + content.ljust(4064, b"\0"))
    return path


async def test_struct_is_shown_as_a_tree(elf: Path, memory: Path) -> None:
    said = await output(
        "inspect", "--elf", elf, "--struct", "mailbox", "--offset", "0x20", "--memory", memory
    )
    assert said.splitlines() == [
        "struct mailbox at 0x20, 20 bytes",
        "0x20  uint32_t head    = 77 (0x4d)",
        "0x24  enum state state = BUSY (3)",
        '0x28  char name[8]     = "host"',
        "0x30  uint8_t low:3    = 2",
        "0x30  uint8_t high:5   = 21 (0x15)",
    ]


async def test_struct_as_json(elf: Path, memory: Path) -> None:
    said = await output(
        "inspect", "--json", "--elf", elf, "--struct", "struct mailbox", "--offset", 32, "--memory", memory
    )
    assert json.loads(said) == {"head": 77, "state": "BUSY", "name": "host", "low": 2, "high": 21}


async def test_variable_is_shown_by_its_type(elf: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(16) + struct.pack("<6H", 1, 2, 1, 2, 3, 4).ljust(4080, b"\0"))
    arguments = ["--elf", elf, "--variable", "slots", "--offset", 16, "--memory", memory]
    assert json.loads(await output("inspect", "--json", *arguments)) == [
        {"id": 1, "length": 2},
        {"id": 1, "length": 2},
        {"id": 3, "length": 4},
    ]


async def test_several_one_after_the_other(elf: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(struct.pack("<8H", 1, 2, 1, 2, 3, 4, 5, 6).ljust(4096, b"\0"))
    arguments = ["--elf", elf, "--struct", "slot", "--memory", memory]
    assert (await output("inspect", *arguments, "--count", 3)).splitlines() == [
        "struct slot[3] at 0x0, 12 bytes",
        "0x0  [0..1]",
        "0x0    uint16_t id     = 1",
        "0x2    uint16_t length = 2",
        "0x8  [2]",
        "0x8    uint16_t id     = 3",
        "0xa    uint16_t length = 4",
    ]
    assert json.loads(await output("inspect", "--json", *arguments, "--count", 1)) == [{"id": 1, "length": 2}]
    assert json.loads(await output("inspect", "--json", *arguments)) == {"id": 1, "length": 2}


async def test_all_that_were_asked_for_are_shown(elf: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(struct.pack("<2048H", *range(2048)))
    said = await output("inspect", "--elf", elf, "--struct", "slot", "--memory", memory, "--count", 1024)
    assert said.splitlines()[-3:] == [
        "0xffc  [1023]",
        "0xffc    uint16_t id     = 2046 (0x7fe)",
        "0xffe    uint16_t length = 2047 (0x7ff)",
    ]
    too_many = ["--struct", "slot", "--memory", memory, "--count", 1025]
    assert "struct slot[1025] takes 4100 bytes" in await error("inspect", "--elf", elf, *too_many)


async def test_watch_prints_each_change_once(elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "server"
    async with (
        serving(path),
        ivshmem_server.connect(path) as peer,
        running(
            "inspect", "--watch", "--interval", 0, "--json", "--elf", elf, "--struct", "mailbox", "-S", path
        ) as client,
    ):
        words = peer.memory.cast("I")
        for head in range(3):
            words[0] = head
            assert json.loads(await client.line())["head"] == head
        await client.stdout.aclose()
        assert await client.wait() == 141


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--elf", "{elf}", "--struct", "mailbux"], "has no mailbux; did you mean struct mailbox?"),
        (["--elf", "{elf}", "--variable", "mailbux"], "has no variable mailbux; did you mean mailbox?"),
        (
            ["--elf", "{elf}", "--variable", "slot"],
            "has no variable slot, but a type: give --struct 'struct slot'",
        ),
        (["--elf", "{elf}", "--struct", "slots"], "has no slots, but a variable: give --variable 'slots'"),
        (["--elf", "/dev/null", "--struct", "mailbox"], "/dev/null"),
        (["--elf", "/no/such", "--struct", "mailbox"], "/no/such: No such file"),
    ],
)
async def test_type_that_cannot_be_had_is_told_before_joining(
    elf: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    arguments = [argument.format(elf=elf) for argument in arguments]
    assert said in await error("inspect", *arguments, "-S", tmp_path / "no-server")


async def test_struct_beyond_the_memory_is_one_line(elf: Path, memory: Path) -> None:
    assert "at offset 0xff0 only 16 of the memory's 4096 are left" in await error(
        "inspect", "--elf", elf, "--struct", "mailbox", "--offset", "0xff0", "--memory", memory
    )

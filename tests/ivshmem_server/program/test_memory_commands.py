"""ivshmem-client's commands on memory: of a server, of a file, of a POSIX shared memory object."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ivshmem_server
from ivshmem_server.program import client
from tests.ivshmem_server.clients import serving
from tests.ivshmem_server.program.client_program import output, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., bytes]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(bytes(8192))
    return path


@pytest.fixture
def command(memory: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command on `memory` and returns what it printed."""
    monkeypatch.setattr(client, "raise_open_files_limit", lambda: None)

    def run_here(*arguments: object, code: int = 0) -> bytes:
        assert client.main([*map(str, arguments), "--memory", str(memory)]) == code
        out, err = capfdbinary.readouterr()
        if code == 0:
            assert err == b""
            return out
        assert out == b""
        assert re.fullmatch(rb"ivshmem-client: [^\n]+\n", err), err
        return err

    return run_here


def test_what_is_written_is_read(command: Run, memory: Path) -> None:
    command("write", "0x10", "--text", "häh")
    command("write", "0x20", "dead", "BE EF", "0x01")
    command("write", 8190, "--u8", 1, "0xff")
    assert memory.read_bytes()[0x10:0x14] == "häh".encode()
    assert command("read", "0x20", 5) == b"deadbeef01\n"
    assert command("read", 0x10, 4, "--raw") == "häh".encode()
    assert command("read", 8190, 2) == b"01ff\n"
    assert command("read", 0, 0) == b"\n"


def test_text_that_is_in_no_encoding_is_written_as_it_is(command: Run, memory: Path) -> None:
    command("write", 0, "--text", os.fsdecode(b"a\xffb"))
    assert memory.read_bytes()[:4] == b"a\xffb\0"


@pytest.mark.parametrize(("option", "size"), [("--u8", 1), ("--u16", 2), ("--u32", 4), ("--u64", 8)])
def test_words_are_written_in_native_order(command: Run, memory: Path, option: str, size: int) -> None:
    highest = (1 << 8 * size) - 1
    command("write", 64, option, 1, highest)
    assert memory.read_bytes()[64 : 64 + 2 * size] == (1).to_bytes(size, "little") + b"\xff" * size


def test_fill(command: Run, memory: Path) -> None:
    command("fill", 4000, "0x60", "0xaa")
    data = memory.read_bytes()
    assert data == bytes(4000) + b"\xaa" * 0x60 + bytes(8192 - 4000 - 0x60)


def test_large_memory_is_filled_and_read_in_pieces(command: Run, memory: Path) -> None:
    size = (3 << 20) + 5
    os.truncate(memory, size)
    command("fill", 0, size, 7)
    assert memory.read_bytes() == b"\7" * size
    assert command("read", 0, size) == b"07" * size + b"\n"
    assert command("read", 1, size - 1, "--raw") == b"\7" * (size - 1)


def test_hexdump_shows_bytes_text_and_offsets(command: Run, memory: Path) -> None:
    memory.write_bytes(bytes(16) + b"Hello, peer!\x7f\x80\n|" + bytes(8160))
    assert command("hexdump", 8, 0x18).decode().splitlines() == [
        "00000008  00 00 00 00 00 00 00 00  48 65 6c 6c 6f 2c 20 70  |........Hello, p|",
        "00000018  65 65 72 21 7f 80 0a 7c                           |eer!...||",
        "00000020",
    ]


def test_hexdump_leaves_out_equal_lines(command: Run, memory: Path) -> None:
    memory.write_bytes(bytes(4096) + b"\1" * 32 + bytes(4064))
    lines = command("hexdump", 0, 8192).decode().splitlines()
    assert [line[:20] for line in lines] == [
        "00000000  00 00 00 0",
        "*",
        "00001000  01 01 01 0",
        "*",
        "00001020  00 00 00 0",
        "*",
        "00002000",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["read", "8192", "1"], "offset 0x2000 with length 0x1 ends beyond the memory of 0x2000 bytes"),
        (["read", "0", "8193"], "ends beyond the memory of 0x2000 bytes"),
        (["hexdump", "0x1fff", "2"], "ends beyond"),
        (["fill", "8000", "193", "0"], "ends beyond"),
        (["write", "8191", "aabb"], "offset 0x1fff with length 0x2 ends beyond"),
        (["write", "8188", "--u32", "1", "2"], "offset 0x1ffc with length 0x8 ends beyond"),
        (["write", "2", "--u32", "1"], "offset 0x2 is not a multiple of 4; words of --u32 must be aligned"),
        (["write", "0", "--u16", "65536"], "0x10000 does not fit --u16"),
        (["write", "0", "abc"], "'abc' is not hexadecimal; write two digits a byte, or use --text"),
        (["fill", "0", "1", "256"], "256 is not a byte; give 0 to 255"),
    ],
)
def test_what_does_not_fit_is_one_line(command: Run, memory: Path, arguments: list[str], said: str) -> None:
    assert said in command(*arguments, code=1).decode()
    assert memory.read_bytes() == bytes(8192)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["write", "0"], "one of the arguments HEX --text --u8"),
        (["write", "0", "aa", "--text", "b"], "not allowed with argument"),
        (["write", "0", "--u8", "1", "--text", "b"], "not allowed with argument"),
        (["read", "-1", "1"], "'-1' is not a number"),
    ],
)
def test_usage_error_has_code_2(
    memory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        client.main([*arguments, "--memory", str(memory)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@contextmanager
def shm_object() -> Iterator[Path]:
    path = Path("/dev/shm") / f"test-client-{os.getpid()}"
    with path.open("xb") as file:  # kept open: another test run removes what nobody uses
        file.truncate(4096)
        try:
            yield path
        finally:
            path.unlink()


async def test_shared_memory_object_goes_by_its_name() -> None:
    with shm_object() as path:
        await output("write", 0, "--text", "shm", "--memory", path.name)
        assert path.read_bytes()[:3] == b"shm"


async def test_standard_input_is_written() -> None:
    with shm_object() as path:
        await output("write", 2, "-", "--memory", path.name, stdin=b"\0from\npipe\xff")
        assert path.read_bytes()[:13] == b"\0\0\0from\npipe\xff"


async def test_only_writing_needs_permission_to_write(memory: Path) -> None:
    os.chmod(memory, 0o444)  # noqa: PTH101
    done = await run("read", 0, 1, "--memory", memory, powerless=True)
    assert (done.code, done.out, done.err) == (0, "00\n", "")
    done = await run("fill", 0, 1, 1, "--memory", memory, powerless=True)
    assert done.code == 1
    assert done.err == f"ivshmem-client: cannot open {memory}: Permission denied; give another --memory\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test-no-such", "there is no /dev/shm/test-no-such; give a path with '/', or the name of"),
        ("/no/such", "there is no /no/such; "),
        ("/dev/null", "/dev/null is unusable: no regular file, "),
        ("/proc/self/stat", "/proc/self/stat is unusable: 0 bytes long; 4096 are the least; "),
        ("/etc/passwd/x", "cannot open /etc/passwd/x: Not a directory; give another --memory"),
    ],
)
def test_memory_that_cannot_be_had_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr(client, "raise_open_files_limit", lambda: None)
    assert client.main(["read", "0", "1", "--memory", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"ivshmem-client: {re.escape(said)}[^\n]*\n", err), err


async def test_commands_work_on_the_memory_of_a_server(tmp_path: Path) -> None:
    path = tmp_path / "server"
    async with serving(path), ivshmem_server.connect(path) as peer:
        peer.memory[:5] = b"hello"
        assert await output("read", "0", "5", "--raw", "-S", path) == "hello"
        await output("write", "4096", "--u64", "0x1122334455667788", "-S", path)
        assert peer.memory.cast("Q")[512] == 0x1122334455667788
        await output("fill", 0, 5, 0, "-S", path)
        assert bytes(peer.memory[:5]) == bytes(5)
        assert (await output("hexdump", 4096, 16, "-S", path)).startswith(
            "00001000  88 77 66 55 44 33 22 11  00"
        )

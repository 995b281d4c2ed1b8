"""Commands of ivshmem-client about the memory: read, write, fill, hexdump, inspect."""

from __future__ import annotations

import string
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import trio

from ivshmem_server.program import inspect_command
from protocol.program.command_line import UserError, number

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator

CHUNK = 1 << 20
"""Bytes that are copied at a time."""

ROW = 16
"""Bytes in a line of a hexdump."""

_WORDS: dict[str, Literal["B", "H", "I", "Q"]] = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}

_PRINTABLE = frozenset((string.digits + string.ascii_letters + string.punctuation + " ").encode())


@dataclass(frozen=True)
class MemoryCommand:
    """A command that runs on the memory of a server, a file or a shm object.

    `prepare` does what needs no memory, before we join: a mistake is told without a join and a leave.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[memoryview, argparse.Namespace], Awaitable[None]]
    prepare: Callable[[argparse.Namespace], None] = lambda _: None
    writes: bool = False


def part(memory: memoryview, offset: int, length: int) -> memoryview:
    """Return `length` bytes at `offset`. Raises UserError where they are not all in the memory."""
    if offset + length > len(memory):
        raise UserError(
            f"offset {offset:#x} with length {length:#x} ends beyond the memory of {len(memory):#x} bytes"
        )
    return memory[offset : offset + length]


def _chunks(length: int) -> Iterator[slice]:
    bounds = [*range(0, length, CHUNK), length]
    return (slice(start, end) for start, end in pairwise(bounds))


def _range_arguments(parser: argparse.ArgumentParser) -> None:
    _offset_argument(parser)
    parser.add_argument("length", type=number, metavar="LENGTH", help="number of bytes")


def _offset_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("offset", type=number, metavar="OFFSET", help="where in the memory, in bytes")


def _read_arguments(parser: argparse.ArgumentParser) -> None:
    _range_arguments(parser)
    parser.add_argument("--raw", action="store_true", help="write the bytes themselves, not hexadecimal")


async def _read(memory: memoryview, options: argparse.Namespace) -> None:
    source = part(memory, options.offset, options.length)
    for chunk in _chunks(options.length):
        await trio.lowlevel.checkpoint()
        if options.raw:
            sys.stdout.buffer.write(source[chunk])
        else:
            sys.stdout.write(source[chunk].hex())
    if not options.raw:
        print()


async def _hexdump(memory: memoryview, options: argparse.Namespace) -> None:
    source = part(memory, options.offset, options.length)
    previous, skipping = b"", False
    for start in range(0, len(source), ROW):
        if start % CHUNK == 0:
            await trio.lowlevel.checkpoint()
        row = bytes(source[start : start + ROW])
        if row != previous:
            previous, skipping = row, False
            print(_hexdump_line(row, options.offset + start))
        elif not skipping:
            skipping = True
            print("*")
    print(f"{options.offset + len(source):08x}")


def _hexdump_line(row: bytes, address: int) -> str:
    text = "".join(chr(byte) if byte in _PRINTABLE else "." for byte in row)
    return f"{address:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|"


def _write_arguments(parser: argparse.ArgumentParser) -> None:
    _offset_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "data", nargs="*", default=[], metavar="HEX", help="bytes in hexadecimal, or - for standard input"
    )
    what.add_argument("--text", metavar="TEXT", help="write TEXT in UTF-8; other bytes as they are")
    for name in _WORDS:
        what.add_argument(
            f"--{name}",
            type=number,
            nargs="+",
            metavar="N",
            help=f"write {name[1:]}-bit words in native order, each at once",
        )


def _prepare_write(options: argparse.Namespace) -> None:
    """Make the bytes to be written of what was given, except where it is words."""
    if options.text is not None:
        options.payload = str(options.text).encode(errors="surrogateescape")
    elif options.data == ["-"]:
        options.payload = sys.stdin.buffer.read()
    else:
        options.payload = _from_hex(options.data)


def _from_hex(words: list[str]) -> bytes:
    try:
        return bytes.fromhex("".join(word.removeprefix("0x") for word in words))
    except ValueError:
        raise UserError(
            f"'{' '.join(words)}' is not hexadecimal; write two digits a byte, or use --text"
        ) from None


async def _write(memory: memoryview, options: argparse.Namespace) -> None:
    await trio.lowlevel.checkpoint()
    for name in _WORDS:
        if (values := getattr(options, name)) is not None:
            _store_words(memory, options.offset, name, values)
            return
    part(memory, options.offset, len(options.payload))[:] = options.payload


def _store_words(memory: memoryview, offset: int, name: str, values: list[int]) -> None:
    """Store each value with one store, so that a reader sees all of it or nothing."""
    size = int(name[1:]) // 8
    if offset % size:
        raise UserError(f"offset {offset:#x} is not a multiple of {size}; words of --{name} must be aligned")
    if too_big := [value for value in values if value >> size * 8]:
        raise UserError(f"{too_big[0]:#x} does not fit --{name}; use a wider one")
    words = part(memory, offset, size * len(values)).cast(_WORDS[name])
    for index, value in enumerate(values):
        words[index] = value


def _fill_arguments(parser: argparse.ArgumentParser) -> None:
    _range_arguments(parser)
    parser.add_argument("byte", type=number, metavar="BYTE", help="0 to 255")


async def _fill(memory: memoryview, options: argparse.Namespace) -> None:
    if options.byte > 255:
        raise UserError(f"{options.byte} is not a byte; give 0 to 255")
    target = part(memory, options.offset, options.length)
    pattern = bytes([options.byte]) * min(options.length, CHUNK)
    for chunk in _chunks(options.length):
        await trio.lowlevel.checkpoint()
        target[chunk] = pattern[: chunk.stop - chunk.start]


MEMORY_COMMANDS = (
    MemoryCommand("read", "print bytes in hexadecimal, or as they are", _read_arguments, _read),
    MemoryCommand("write", "write bytes or words", _write_arguments, _write, _prepare_write, writes=True),
    MemoryCommand("fill", "fill a range with one byte", _fill_arguments, _fill, writes=True),
    MemoryCommand("hexdump", "print bytes for people", _range_arguments, _hexdump),
    MemoryCommand(
        "inspect",
        "show structs and variables as an ELF file defines them",
        inspect_command.add_arguments,
        inspect_command.run,
        inspect_command.prepare,
    ),
)

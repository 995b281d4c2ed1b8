"""The inspect command of ivshmem-client: memory through the C definitions in an ELF file."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import trio

from ivshmem_server.program.commands import say
from protocol.program.command_line import UserError, number, positive_number, seconds

if TYPE_CHECKING:
    import argparse

    from ivshmem_server.elf import CType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of inspect."""
    parser.add_argument(
        "--elf", required=True, metavar="FILE", help="an ELF file with debug information (gcc -g)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--struct",
        metavar="NAME",
        help="a struct, union, enum or typedef of it; SCOPE::NAME and NAME@FILE.c choose",
    )
    what.add_argument("--variable", metavar="NAME", help="a variable of it, whose type is shown")
    parser.add_argument(
        "--count",
        type=positive_number,
        metavar="N",
        help="how many there are, one after the other (default: 1)",
    )
    parser.add_argument(
        "--offset", type=number, default=0, metavar="N", help="where it begins in the memory (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print it as one line of JSON")
    parser.add_argument("--watch", action="store_true", help="print it again whenever it changes")
    parser.add_argument(
        "--interval", type=seconds, default=0.2, metavar="S", help="seconds between looks (default: 0.2)"
    )


def prepare(options: argparse.Namespace) -> None:
    """Find the type. Raises UserError."""
    # Not at the head of the file: the other commands start without pyelftools.
    from ivshmem_server.elf import ElfViewError, array_of, load_types

    try:
        types = load_types(options.elf)
        find = types.find_variable if options.struct is None else types.find
        ctype = find(options.variable if options.struct is None else options.struct)
        options.ctype = ctype if options.count is None else array_of(ctype, options.count)
    except ElfViewError as error:
        raise UserError(str(error)) from None
    if types.warning is not None:
        print(f"ivshmem-client: warning: {types.warning}", file=sys.stderr)


async def run(memory: memoryview, options: argparse.Namespace) -> None:
    """Print the memory, once or whenever it changes. Raises UserError."""
    shown = None
    while True:
        if (text := _text(memory, options.ctype, options)) != shown:
            say(text)
            shown = text
        if not options.watch:
            return
        await trio.sleep(options.interval)


def _text(memory: memoryview, ctype: CType, options: argparse.Namespace) -> str:
    from ivshmem_server.elf import SHOWN, ElfViewError, decode, render, to_json

    try:
        value = decode(ctype, memory, options.offset)
        if options.json:
            return json.dumps(to_json(value))
        return render(value, limit=max(options.count or 0, SHOWN))
    except ElfViewError as error:
        raise UserError(str(error)) from None

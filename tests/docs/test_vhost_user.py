"""docs/vhost-user.md is true: its options, commands and files are those of the programs."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import vhost_user
from tests.docs.documents import DOCUMENTS, PROJECT, blocks, read, session
from vhost_user.devices import DEVICES
from vhost_user.devices.blk.faults import SYNTAX, parse_fault
from vhost_user.program import main
from vhost_user.program.installed import find
from vhost_user.program.options import build_parser, parse_options
from vhost_user.program.trace import add_trace_parser

GUIDE = read("vhost-user.md")
SECONDS = 60


def rows(heading: str, text: str = GUIDE) -> list[list[str]]:
    """Return the rows of the table below the line `heading`."""
    table = text.split(f"\n{heading}\n\n")[1].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def documented(heading: str, text: str = GUIDE) -> list[tuple[str, str]]:
    """Return the options in a table, with their defaults."""
    return [(cells[0], cells[1]) for cells in rows(heading, text)]


def described(action: argparse.Action) -> tuple[str, str]:
    """Return the option as a table has it, with its default."""
    *short, long = action.option_strings
    if action.choices:
        long += f" {{{','.join(map(str, action.choices))}}}"
    elif action.metavar:
        long += f" {action.metavar}"
    hidden = action.default in (None, False, argparse.SUPPRESS, []) or action.default == ""
    return ", ".join(f"`{name}`" for name in (*short, long)), "" if hidden else str(action.default)


def of_program(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    return [described(action) for action in parser._actions]


def trace_parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser().add_subparsers()
    add_trace_parser(commands)
    return commands.choices["trace"]


@pytest.mark.parametrize("name", DEVICES)
def test_options_of_a_device(name: str) -> None:
    """They are in one table for all, and in those below "NAME:", in this guide or the device's own."""
    parser = build_parser(find(name), f"vhost-user-{name}")
    guides = [guide for guide in map(Path.read_text, DOCUMENTS) if f"\n{name}:\n\n" in guide]
    own = [option for guide in guides for option in documented(f"{name}:", guide)]
    assert sorted(documented("All devices have these:") + own) == sorted(of_program(parser))


def test_options_of_the_trace() -> None:
    assert documented("`vhost-user trace`:") == of_program(trace_parser())


@pytest.mark.qemu
def test_list() -> None:
    argv = [sys.executable, "-m", "vhost_user.program.main", "list"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=True)
    (shown,) = (command.output for command in session(GUIDE) if command.text == "vhost-user list")
    assert without_version(result.stdout) == without_version(f"{shown}\n")


def without_version(text: str) -> str:
    return re.sub(r"which QEMU [0-9.]+", "which QEMU", text)


def device_commands() -> list[str]:
    """Return all command lines in the documents that run a device of ours."""
    names = "|".join(DEVICES)
    joined = everything().replace("\\\n", "")
    code = re.findall(rf"^ *(?:\$ )?(vhost-user(?:-(?:{names})| run (?:{names})) .*)$", joined, re.MULTILINE)
    return [command for command in code if "--" in command and "..." not in command]


def everything() -> str:
    return "\n".join(document.read_text() for document in DOCUMENTS)


def test_command_lines_are_right() -> None:
    commands = device_commands()
    assert len(commands) >= 3
    for command in commands:
        program, *arguments = shlex.split(command.removeprefix("vhost-user run ").removeprefix("vhost-user-"))
        build_parser(find(program), program).parse_args(arguments)


def test_rules_of_faults() -> None:
    assert f"\n    {SYNTAX}\n" in GUIDE
    values = {cells[0].strip("`"): re.findall(r"`([^`]+)`", cells[1]) for cells in rows("    " + SYNTAX)}
    for operation in values["OPERATION"]:
        for action in ("error", "unsupported", "stuck", *(f"latency={time}" for time in values["latency="])):
            parse_fault(f"{operation}:lba=1-2:times=3:{action}")
    with pytest.raises(ValueError, match=", ".join(values["OPERATION"][:-1])):
        parse_fault("nothing:error")


def test_unit_starts_the_program_as_it_wants_to_be_started() -> None:
    unit = configparser.ConfigParser()
    unit.read_string(blocks(GUIDE, "ini")[0])
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/usr/bin/vhost-user-blk"
    build_parser(find("blk"), program).parse_args(arguments)
    assert unit["Service"]["Type"] == "notify"


def test_domains_have_what_is_printed_for_them() -> None:
    """Real domains are started with it in tests/peers."""
    shown = [block.partition("\n")[2].rpartition("</domain>")[0] for block in blocks(GUIDE, "xml")]
    commands = [command.text for command in session(GUIDE) if "--print-libvirt-xml" in command.text]
    assert len(shown) == len(commands) == 2
    for text, argv in zip(shown, map(shlex.split, commands), strict=True):
        device = find(argv[0].removeprefix("vhost-user-"))
        printed = device.libvirt_xml(parse_options(device, argv[0], argv[1:]))
        assert textwrap.dedent(text) == f"{printed}\n"


def test_description_is_the_one_that_is_installed() -> None:
    installed = PROJECT / "vhost_user/share/50-qemu-companion-blk.json"
    assert json.loads(blocks(GUIDE, "json")[0]) == json.loads(installed.read_text())


def test_guides_tell_of_every_command() -> None:
    (commands,) = (
        action for action in main._build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name in commands.choices:
        assert f"`vhost-user {name}" in everything() or f"$ vhost-user {name}" in everything()


def test_description_files_that_the_guide_tells_of() -> None:
    """It names those that are installed, and those that there are none of."""
    directory = Path(vhost_user.__file__).parent / "share"
    installed = {path.stem.rpartition("-")[2] for path in directory.glob("*.json")}
    section = " ".join(GUIDE.partition("\n## For management software\n")[2].partition("```")[0].split())
    told, missing = (
        re.search(pattern, section) for pattern in ("a file for each of (.*?) there", "is none of (.*?):")
    )
    assert told is not None
    assert missing is not None
    assert set(re.findall(r"\w+", told[1])) - {"and"} == installed
    assert set(re.findall(r"\w+", missing[1])) - {"and"} == set(DEVICES) - installed

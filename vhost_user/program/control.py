"""`vhost-user control`: changes what a running back-end simulates."""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from protocol.io.background import beside
from protocol.io.hangup import fail_without_reader
from protocol.program.command_line import (
    BROKEN_PIPE,
    INTERRUPTED,
    OneLineParser,
    UserError,
    fail,
    print_result,
    settle_output,
)
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.control_client import ControlError, connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.simulation.control_client import ControlClient

PROGRAM = "vhost-user control"

_DESCRIPTION = """\
Make a call of a device that runs with --control PATH, and print its result as JSON. Without a call,
print the calls of the device. A VALUE is a text as it is, anything else in JSON, or a number such as
0x1F; without a NAME, it is the value of the next argument.
"""

_HEXADECIMAL = re.compile(r"-?0[xX][0-9a-fA-F]+")

_TEXTS = ("str", "bytes", "'")
"""The beginnings of the types of arguments that are texts in JSON."""


def add_control_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `control`; its options hold `run_control` as `run`."""
    parser = subparsers.add_parser(
        "control",
        help="change what a running device simulates",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.usage = f"{PROGRAM} [-h] [--on PART] [--events] PATH [CALL] [[NAME=]VALUE ...]"
    parser.add_argument(
        "path", metavar="PATH", help="the control socket of the device, as given to its --control"
    )
    parser.add_argument(
        "rest", metavar="CALL [NAME=]VALUE", nargs=argparse.REMAINDER, help="a call and its arguments"
    ).required = False  # or the error about a missing PATH names it, too
    _add_options(parser)
    parser.set_defaults(run=run_control)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on",
        metavar="PART",
        default="",
        help="make a call of this part of the device, such as the address of a chip",
    )
    parser.add_argument(
        "--events", action="store_true", help="print events as lines of JSON, after the call if one is given"
    )


def _read_rest(options: argparse.Namespace) -> None:
    """Find call, values and options in the words after the path, in any order."""
    parser = OneLineParser(prog=PROGRAM)
    parser.add_argument("words", nargs="*")
    _add_options(parser)
    parser.parse_intermixed_args(options.rest, options)
    options.call, *options.values = options.words or [None]


def run_control(options: argparse.Namespace) -> int:
    """Make the call; return the exit code. Raises UserError."""
    _read_rest(options)
    try:
        return trio.run(_main, options)
    except KeyboardInterrupt:
        return 0 if options.events else INTERRUPTED
    except BrokenPipeError:
        settle_output()
        return BROKEN_PIPE


async def _main(options: argparse.Namespace) -> int:
    try:
        async with connect(options.path) as client:
            return await _run(client, options)
    except (CallError, ControlError) as error:
        return fail(PROGRAM, error)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot connect to {options.path}: {error.strerror}; start a device with this --control"
        ) from None


async def _run(client: ControlClient, options: argparse.Namespace) -> int:
    if options.events:
        await client.subscribe()
    code = 0
    if options.call is not None:
        result = await client.call(options.call, on=options.on, **await _arguments(client, options))
        code = print_result(PROGRAM, json.dumps(result))
    elif not options.events:
        code = print_result(PROGRAM, "\n".join(map(_help, await client.call("help"))) or "there are no calls")
    if options.events and not code:
        await _print_events(client)
    return code


async def _print_events(client: ControlClient) -> None:
    async with beside(partial(fail_without_reader, sys.stdout.fileno())):
        while True:
            event = await client.next_event()
            on = {"on": event.on} if event.on else {}
            print(json.dumps({"event": event.name, **on, "data": event.data}), flush=True)


async def _arguments(client: ControlClient, options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a call by name. Raises UserError for too many."""
    calls = await client.call("help") if options.values else []
    known = [found for found in calls if (found["call"], found["on"]) == (options.call, options.on)]
    return _by_name(known[0]["arguments"], options.values) if known else {}


def _by_name(types: dict[str, str], values: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or name not in types:
            name, value = next((name for name in types if name not in given), ""), text
        if not name or name in given:
            raise UserError(f"'{text}' is one argument too many; the call takes ({_signature(types)})")
        given[name] = value if types[name].startswith(_TEXTS) else _from_text(value)
    return given


def _from_text(value: str) -> Any:
    """Return the value of a text in JSON or as a hexadecimal number; otherwise the text itself."""
    try:
        if _HEXADECIMAL.fullmatch(value):
            return int(value, 16)
        return json.loads(value)
    except ValueError:
        return value


def _help(found: dict[str, Any]) -> str:
    on = f"[--on {found['on']}] " if found["on"] else ""
    return f"{on}{found['call']}({_signature(found['arguments'])})  {found['help']}"


def _signature(types: dict[str, str]) -> str:
    return ", ".join(f"{name}: {text}" for name, text in types.items())

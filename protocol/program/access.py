"""Access to a socket of ours: --mode, --owner and --group of every command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from protocol.program.command_line import group_id, permission_bits, user_id

if TYPE_CHECKING:
    import argparse


class SocketAccess(TypedDict, total=False):
    """Permission bits, owner and group of a socket, as `listen()` takes them; absent where not given."""

    mode: int | None
    owner: int
    group: int


def add_access_options(parser: argparse._ActionsContainer, sockets: str = "socket") -> None:
    """Add the options to a command line; `sockets` is what their help calls what they are for."""
    parser.add_argument(
        "--mode",
        type=permission_bits,
        metavar="OCTAL",
        help=f"permissions of the {sockets}, as 0660 (default: by the umask)",
    )
    parser.add_argument("--owner", type=user_id, metavar="USER", help=f"owner of the {sockets}")
    parser.add_argument("--group", type=group_id, metavar="GROUP", help=f"group of the {sockets}")


def access_from(options: argparse.Namespace) -> SocketAccess:
    """Return what the command line says; empty, and so false, where it says nothing."""
    access = SocketAccess()
    if options.mode is not None:
        access["mode"] = options.mode
    if options.owner is not None:
        access["owner"] = options.owner
    if options.group is not None:
        access["group"] = options.group
    return access


def given_options(access: SocketAccess) -> str:
    """Return the options that were given, for an error that says what they do not go with."""
    return " and ".join(f"--{name}" for name in access)

"""Parts of our command lines: errors of one line, number types, limits, users by name."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import grp
import io
import logging
import os
import pwd
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from protocol.io import exhaustion
from protocol.program import logs

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 and the number of the signal, as a shell reports a program that SIGINT or SIGPIPE ended."""

_ANY_TEXT = "qemu-companion.bytes-or-escape"

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

TWO_SOCKETS = "{} is given for two sockets; give each a path of its own"
"""What is wrong with a path that is given twice."""

EMPTY = "''"
"""How messages show a path that is an empty string."""

MAX_USER_OR_GROUP = 2**32 - 2
"""Highest number of a user or a group: the next one means "leave it as it is" to chown(2)."""


class UserError(Exception):
    """Something the user can mend; the text is one line that says what is wrong and what to do."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help; exit 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def fail(program: str, message: object) -> int:
    """Print an error of one line to standard error; return the exit code for it."""
    print(f"{program}: {message}", file=sys.stderr)
    return 1


def print_result(program: str, text: str) -> int:
    """Print what a command was for; return its exit code. What cannot be written is an error of one line.

    So is a character that standard output has not: somebody may paste what is printed.
    """
    try:
        text.encode(sys.stdout.encoding, "surrogateescape")
        print(text, flush=True)
    except UnicodeEncodeError as error:
        missing = ascii(text[error.start : error.end])
        remedy = "set PYTHONIOENCODING=utf-8"
        return fail(
            program, f"cannot write {missing} to standard output, which is {error.encoding}; {remedy}"
        )
    except BrokenPipeError:
        settle_output()
        return BROKEN_PIPE
    except OSError as error:
        settle_output()
        return fail(program, f"cannot write to standard output: {error.strerror}")
    return 0


def settle_output() -> None:
    """Write what was printed, or forget it: Python tries again at its end, and would complain there."""
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def prepare_standard_streams() -> None:
    """Make all of them usable for what may be printed; call it before anything is opened.

    /dev/null is opened for each that our parent closed: a socket would get the number of that stream
    otherwise, and become what is printed to. And what standard output has no character for, such as in
    the memory of a guest, is printed as an escape; bytes of names that are in no encoding, as they are.
    So are such bytes that somebody types.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the kernel gives the lowest number that is free
    os.close(fd)
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:  # so Python found it closed
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    codecs.register_error(_ANY_TEXT, _bytes_or_escape)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in {"strict", "surrogateescape"}:
        sys.stdout.reconfigure(errors=_ANY_TEXT)
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors == "strict":
        sys.stdin.reconfigure(errors="surrogateescape")


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what the encoding cannot: the bytes of os.fsdecode() as they were, all else as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    error.end = error.start + 1  # one at a time, as each may be of either kind
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def add_log_options(group: argparse._ArgumentGroup, verbose: str) -> None:
    """Add the options that `configure_log()` heeds; `verbose` says in the help what -v logs."""
    group.add_argument("-v", "--verbose", action="store_true", help=verbose)
    group.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="how to log (default: %(default)s)"
    )
    group.add_argument(
        "--log-file",
        metavar="FILE",
        help="append the log to FILE, and open it again on SIGHUP (default: standard error)",
    )


def configure_log(program: str, options: argparse.Namespace) -> None:
    """Log as the options say. Raises UserError."""
    try:
        logs.configure(program, style=options.log_format, verbose=options.verbose, path=options.log_file)
    except OSError as error:
        reason = exhaustion.cause_and(error, "give another --log-file")
        raise UserError(f"cannot write the log {options.log_file}: {reason}") from None


def fail_to_start(program: str, error: Exception) -> int:
    """Print an error of one line, and log it where the log is in a file; return the exit code for it."""
    log_failed_start(error)
    return fail(program, error)


def log_failed_start(error: Exception) -> None:
    """Log why a program does not start, where the log is in a file: on a terminal it is printed anyway."""
    if logs.is_file():
        _log.error("cannot start: %s", error)


def user_id(text: str) -> int:
    """Return the number of the user that `text` names, or is. For argparse: raises ArgumentTypeError."""
    return _number(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(text: str) -> int:
    """Return the number of the group that `text` names, or is. For argparse: raises ArgumentTypeError."""
    return _number(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number(text: str, kind: str, look_up: Callable[[str], int]) -> int:
    try:
        number = int(text) if text.isdecimal() else look_up(text)
    except KeyError:
        number = -1
    if not 0 <= number <= MAX_USER_OR_GROUP:
        raise argparse.ArgumentTypeError(f"there is no {kind} '{text}'; give the number of one")
    return number


def permission_bits(text: str) -> int:
    """Return the permission bits that `text` says in octal. For argparse: raises ArgumentTypeError."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"'{text}' is not a mode; write it in octal, as 0660")
    return mode


def check_descriptors(who: str, least: int) -> None:
    """Raise UserError where fewer files than `least` can be opened yet; `who` takes them, in the error."""
    limit, room = room_for_descriptors()
    if room < least:
        raise UserError(f"{who} takes more than {limit} open files: raise the limit (ulimit -n)")


def raise_open_files_limit() -> None:
    """Allow this process as many open files as it may allow itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # where fs.nr_open was lowered since, it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_for_descriptors() -> tuple[int, int]:
    """Return how many files this process may have open, and how many of these are not open yet."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # as good as a count: all below are open
    except OSError:
        return limit, 0
    os.close(lowest)
    return limit, limit - lowest


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a type for argparse: a number from `low` to `high`."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {low} to {high}")
        return int(text)

    return number


def number(text: str) -> int:
    """Return the number that `text` says, decimal or 0x. For argparse: raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if (value := int(text, 0)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"'{text}' is not a number; write it as 4096 or 0x1000")


def seconds(text: str) -> float:
    """Return the seconds that `text` says. For argparse: raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds; write it as 2 or 0.5")


def positive_number(text: str) -> int:
    """Return the number that `text` says, at least 1. For argparse: raises ArgumentTypeError."""
    if (value := number(text)) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be at least 1")
    return value


def parsed_by(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return a type for argparse, which then prints what `parse` says in a ValueError."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed

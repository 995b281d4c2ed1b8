"""QEMU's options, as --print-qemu-args prints them: properties with their commas quoted."""

from __future__ import annotations

import shlex
from pathlib import Path


def socket_chardev(properties: str = "", *, path: str, **before: str) -> str:
    """Return `-chardev socket,...` for the UNIX socket `path`, quoted for a shell.

    `before` are properties by their names, such as the id; `properties` follow as they are, with a
    comma before each.
    """
    named = before | {"path": str(Path(path).absolute())}
    words = ["socket", *(f"{name}={quoted(value)}" for name, value in named.items())]
    return f"-chardev {shlex.quote(','.join(words) + properties)}"


def quoted(value: str) -> str:
    """Return the value of a property as QEMU reads it: a comma is given twice."""
    return value.replace(",", ",,")

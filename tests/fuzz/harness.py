"""Runs a target on one input after the other, and checks after each that nothing was left open.

A target is a module with `one_input(data)`, which raises for a defect only, and `seeds()`, which yields
the name and the bytes of inputs to begin with.
"""

from __future__ import annotations

import base64
import gc
import os
import sys
import warnings
from typing import TYPE_CHECKING

from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Callable

    OneInput = Callable[[bytes], None]

TARGETS = (
    "backend_session",
    "frontend_session",
    "observer",
    "ivshmem_client",
    "stream",
    "split_ring",
    "packed_ring",
    "blk",
    "i2c",
    "console",
    "gpio",
    "net",
    "server",
    "texts",
    "vsock",
    "input",
)


class DefectError(Exception):
    """A target left something behind, or did something that nobody asked it for."""


def guarded(name: str, one_input: OneInput, swallowed: list[str]) -> OneInput:
    """Return `one_input`, which now also fails where a descriptor stays open or an error is `swallowed`.

    A failure says what the input was, and how to try it again.
    """

    def run(data: bytes) -> None:
        before = open_descriptors()
        try:
            one_input(data)
            after = open_descriptors()
            if len(after) != len(before):
                gc.collect()  # what a caught error refers to may hold memory, and with it a descriptor
                after = open_descriptors()
            if len(after) != len(before):
                raise DefectError(f"descriptors {sorted(after ^ before)} are open now, or no longer")
            if swallowed:
                raise DefectError(f"an error that nobody saw: {swallowed}")
        except BaseException:
            _report(name, data)
            raise

    return run


def swallowed_errors() -> list[str]:
    """Return a list to which every error is added that Python or a device would only print, or warn of."""
    swallowed: list[str] = []
    Containment.failed = lambda _, what, _effect, error: swallowed.append(f"{what}: {error!r}")  # type: ignore[method-assign, assignment]
    sys.unraisablehook = lambda args: swallowed.append(repr(args.exc_value))
    warnings.simplefilter("error")  # a descriptor that lost its owner says so by a warning
    return swallowed


def open_descriptors() -> set[str]:
    """Return the numbers of this process's open descriptors."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- ten times as fast, for every input


def _report(name: str, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    print(
        f"\n{name} failed on {len(data)} bytes, in base64: {encoded}\n"
        f"in hexadecimal: {data.hex()}\n"
        f"to try it again: base64 -d <<< {encoded} > input; python -m tests.fuzz {name} input",
        file=sys.stderr,
        flush=True,
    )

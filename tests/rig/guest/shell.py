"""`make guest`: a shell in the tests' guest, on this terminal, with devices of your choice."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from tests.rig.debian.apt import SetupError
from tests.rig.guest.guest import machine_arguments
from tests.rig.guest.tools import TOOLS

if TYPE_CHECKING:
    from collections.abc import Sequence


def command(devices: Sequence[str]) -> list[str]:
    """Return the QEMU command line of a guest with a shell on the console, and all tools. Raises SetupError.

    Its memory is one that vhost-user back-ends can map, unless `devices` bring a backend `mem` and its size.
    Ctrl-A X ends it.
    """
    argv = machine_arguments(shared=True, tools=TOOLS)
    argv[argv.index("stdio")] = "mon:stdio"  # Ctrl-C is for the guest's shell
    if any(",id=mem," in text for text in devices):
        last = argv.index("-object") + 1
        del argv[last - 3 : last + 1]  # the size, and the object
    return [*argv, *devices]


def main() -> NoReturn:
    """Become QEMU, with the arguments of this program."""
    try:
        argv = command(sys.argv[1:])
    except SetupError as error:
        sys.exit(f"guest: {error}")
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()

"""A program at a terminal of its own, which can hang up."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from tests.rig.programs import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


@asynccontextmanager
async def start_in_terminal(argv: Sequence[str]) -> AsyncIterator[tuple[process.Program, OwnedFd]]:
    """Run `argv` as the leader of a session at a new terminal; yield both. It is killed when the block ends.

    Whoever closes the terminal hangs up.
    """
    ours, theirs = os.openpty()
    with OwnedFd(ours) as terminal, OwnedFd(theirs) as device:
        # The tests may run under nohup(1), the program does not.
        own = ["env", "--default-signal=HUP", "sh", "-c", 'exec setsid --ctty "$@" <"/proc/self/fd/$0"']
        own += [str(theirs), *argv]
        async with process.start(own, pass_fds=[theirs]) as program:
            device.close()
            yield program, terminal

r"""A script that sits at a guest's console: it logs in as root, runs a command, and prints its output.

    python3 scripted_console.py /tmp/console.sock 'uname -r'

User Mode Linux (docs/uml.md) attaches it with virtio_uml.device=/tmp/console.sock:3, and QEMU from 10.2 on:

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/console.sock,id=console \
        -device vhost-user-test-device-pci,chardev=console,virtio-id=3,num_vqs=4,config_size=12

The guest needs a getty on hvc0, which systemd starts for a kernel that was booted with console=hvc0.
"""

from __future__ import annotations

import math
import re
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

import vhost_user
from vhost_user.devices.console import Console
from vhost_user.program import run_main

if TYPE_CHECKING:
    from vhost_user.devices.console import PortSimulation

PROMPT = "[#$] "
WHENEVER = math.inf
"""A guest may have to be started yet, and to boot, and a command may take its time."""


async def run_in_guest(port: PortSimulation, command: str) -> tuple[str, int]:
    """Log in, if need be; return the output of `command`, and its exit code."""
    if (await port.expect_regex(f"login: |{PROMPT}", WHENEVER)).endswith("login: "):
        port.send_line("root")
        await port.expect_regex(PROMPT, WHENEVER)
    port.send_line("stty -echo; PS1=; echo rea''dy")
    await port.expect("ready\r\n", WHENEVER)
    port.send_line(f"{command}; echo status $?.")
    output = await port.expect_regex(r"status \d+\.", WHENEVER)
    text, _, status = output.replace("\r\n", "\n").rpartition("status ")
    return re.sub(r"\x1b\[[0-9;]*\w", "", text), int(status.removesuffix("."))


async def main(socket_path: str, command: str) -> int:
    """Serve a console to whoever connects, until the command has ended there; return its exit code."""
    with Console(max_ports=1) as console:
        console.withhold(vhost_user.Feature.RING_PACKED)  # User Mode Linux would turn it on, and has it not
        port = console.add_port("console", console=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(vhost_user.serve, console, socket_path=socket_path))
            output, status = await run_in_guest(port, command)
            nursery.cancel_scope.cancel()
    print(output, end="")
    return status


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(run_main(main, sys.argv[1], sys.argv[2]))

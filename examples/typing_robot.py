r"""A typing robot: a keyboard that types shell commands into a guest's console, each when the last is done.

    python3 typing_robot.py /tmp/robot.sock commands.txt

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/robot.sock,id=robot -device vhost-user-input-pci,chardev=robot

It sees that a command is done by its own scroll-lock lamp, which it has the guest switch.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import trio

import vhost_user
from vhost_user.devices.input import Input, Keyboard
from vhost_user.program import run_main

LAMP = "lamp=$(echo /sys/bus/virtio/devices/*/input/*/*::scrolllock/brightness)"


async def type_commands(keyboard: Keyboard, commands: list[str]) -> None:
    """Type commands as a person does, each when the guest has done the one before."""
    await keyboard.ready()
    for number, command in enumerate([LAMP, *commands]):
        lit = number % 2 == 0
        for character in f"{command}; echo {int(lit)} >$lamp\n":
            keyboard.pace = random.uniform(0.002, 0.01)
            await keyboard.type_text(character)
        await keyboard.wait_led("scrolllock", lit=lit)
        if number:
            print(f"done: {command}", flush=True)


async def main(path: str, commands: list[str]) -> None:
    keyboard = Keyboard()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(vhost_user.serve, Input(keyboard), socket_path=path))
        print("listening", flush=True)
        await type_commands(keyboard, commands)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        commands = Path(sys.argv[2]).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {sys.argv[2]}: {error}; give a text file with a command a line")
    sys.exit(run_main(main, sys.argv[1], commands))

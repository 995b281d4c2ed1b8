r"""A button and a LED of a guest: Enter in this program presses the button, and what the LED does is printed.

    python3 button_and_led.py /tmp/gpio.sock

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/gpio.sock,id=gpio -device vhost-user-gpio-pci,chardev=gpio

In a Linux guest, `gpiomon --edges=rising button` prints each press, and `gpioset led=1` lights
the LED.
"""

from __future__ import annotations

import os
import sys

import trio

import vhost_user
from vhost_user.devices.gpio import Gpio, SimulatedChip, SimulatedLine
from vhost_user.program import run_main


async def press_at_enter(button: SimulatedLine) -> None:
    while True:
        typed = await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True)
        if not typed:
            return
        for _ in range(typed.count(b"\n")):
            await button.press(seconds=0.05)
            print("the button was pressed", flush=True)


async def show(led: SimulatedLine) -> None:
    with led.events() as events:
        async for event in events:
            if event.name == "value":
                print(f"the LED is {'on' if event.data['value'] else 'off'}", flush=True)


async def main(socket_path: str) -> None:
    button, led = SimulatedLine("button"), SimulatedLine("led")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(press_at_enter, button)
        nursery.start_soon(show, led)
        await vhost_user.serve(Gpio(SimulatedChip([button, led])), socket_path=socket_path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(run_main(main, sys.argv[1]))

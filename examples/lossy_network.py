r"""A network that becomes worse step by step while two guests talk, to see what they make of it.

    python3 lossy_network.py /tmp/net.sock

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/net.sock0,id=net -netdev vhost-user,chardev=net,id=net \
        -device virtio-net-pci,netdev=net,mac=52:54:00:00:00:01

The other guest has /tmp/net.sock1 and an address of its own. In User Mode Linux, the device is
virtio_uml.device=/tmp/net.sock0:1 instead. Once both guests are heard of, the steps below follow each
other, 10 seconds each, or as many as a second argument says; at the last one it stays.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import trio

import vhost_user
from vhost_user.devices.net import ImpairedPort, Impairments, Link, Net
from vhost_user.program import run_main

STEPS = {
    "a good line": Impairments(),
    "far away": Impairments(delay=0.04, jitter=0.01),
    "far away, and slow": Impairments(delay=0.04, jitter=0.01, rate=256e3),
    "bad radio": Impairments(loss=0.2, delay=0.02, jitter=0.01, reorder=0.05),
    "cut off": Impairments(loss=1.0),
    "a good line again": Impairments(),
}
"""What is wrong in each direction, in seconds, shares, and bits per second."""


async def main(path: str, seconds: float) -> None:
    """Serve two guests, at PATH0 and PATH1, and take their network through the steps."""
    ports = [ImpairedPort(port, seed=str(port.number)) for port in Link().ports]
    lines = [port.from_guest for port in ports]
    async with trio.open_nursery() as nursery:
        for number, port in enumerate(ports):
            card = Net(port)
            card.withhold(vhost_user.Feature.RING_PACKED)  # which User Mode Linux does not have
            await nursery.start(partial(vhost_user.serve, card, socket_path=f"{path}{number}"))
        print("waiting for two guests", flush=True)
        while not all(line.line.counts.sent for line in lines):  # noqa: ASYNC110 -- it may take minutes
            await trio.sleep(0.1)
        for name, impairments in STEPS.items():
            for line in lines:
                line.change(impairments)
            await trio.sleep(seconds)
            sent, lost = (sum(getattr(line.line.counts, what) for line in lines) for what in ("sent", "lost"))
            print(f"{name}: {sent} frames so far, {lost} lost", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve two guests, over a network that becomes worse.")
    parser.add_argument("path", help="where to listen: at PATH0 and PATH1")
    parser.add_argument("seconds", type=float, nargs="?", default=10.0, help="how long each step takes")
    options = parser.parse_args()
    sys.exit(run_main(main, options.path, options.seconds))

r"""A virtio device of your own: an entropy source that gives a guest the bytes you choose, for driver tests.

    python3 scripted_rng.py /tmp/rng.sock 00 01 02 ff

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/rng.sock,id=rng -device vhost-user-rng-pci,chardev=rng

In a Linux guest, /dev/hwrng then repeats 00 01 02 ff for ever.
"""

import sys
from functools import partial
from itertools import cycle, islice

import vhost_user
from vhost_user.program import run_main


class ScriptedRng(vhost_user.VirtioDevice):
    """An entropy device (virtio 1.3, section 5.4) without any entropy."""

    device_id = vhost_user.DeviceId.RNG
    name = "scripted-rng"

    def __init__(self, script: bytes = b"\x00\x01\x02\xff") -> None:
        self._bytes = cycle(script)

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        """Fill each buffer that the driver offers."""
        async for chain in queue:
            chain.writable.write(bytes(islice(self._bytes, chain.writable.remaining)))
            chain.complete()


if __name__ == "__main__":
    path, *script = sys.argv[1:] or sys.exit(__doc__)
    try:
        device = ScriptedRng(bytes.fromhex("".join(script)))
    except ValueError as error:
        sys.exit(f"{error}: give bytes, as in 00 01 ff")
    sys.exit(run_main(partial(vhost_user.serve, device, socket_path=path)))

"""Our rng, and a device of the user's, as /dev/hwrng of User Mode Linux."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.programs.backend import RunningBackend

pytestmark = pytest.mark.uml

TEXT = b"from our device\n"
"""Its length divides that of any request of Linux's driver."""


@pytest.mark.parametrize("way", ["in-band", "eventfds"])
@pytest.mark.parametrize("ring", [(), ("--without", "EVENT_IDX", "--without", "INDIRECT_DESC")])
async def test_hwrng_gives_the_bytes_of_our_rng(directory: Path, way: str, ring: tuple[str, ...]) -> None:
    source = directory / "numbers"
    source.write_bytes(TEXT * 256)
    options = ["-f", str(source), *ring, "-v"]
    if way == "eventfds":
        options += ["--without", "INBAND_NOTIFICATIONS"]
    async with uml.boot_with(directory, DeviceId.RNG, "rng", *options) as (guest, backend):
        current = await guest.sh("cat /sys/class/misc/hw_random/rng_current")
        assert current.startswith("virtio_rng")
        got = await guest.sh("head -c 4096 /dev/hwrng")
        assert got.encode() + b"\n" == TEXT * 256
        assert notifications(backend) == ({"messages"} if way == "in-band" else {"descriptors"})


def notifications(backend: RunningBackend) -> set[str]:
    """Return how front-end and back-end notified each other, by the log of one that was started with -v."""
    requests = backend.requests()
    (negotiated,) = (line for line in requests if line.startswith("SET_PROTOCOL_FEATURES"))
    kicks = [line for line in requests if line.startswith("VRING_KICK index=0")]
    answered = [line for line in requests if line == "reply to VRING_CALL value=0"]
    descriptors = [line for line in requests if line.startswith(("SET_VRING_KICK", "SET_VRING_CALL"))]
    ways = set()
    if "INBAND_NOTIFICATIONS" in negotiated and len(kicks) > 10 and len(answered) > 10:
        ways.add("messages")
    if any("fds=1" in line for line in descriptors):
        ways.add("descriptors")
    return ways


async def test_ones_own_device(directory: Path) -> None:
    device = "examples.scripted_rng:ScriptedRng"
    async with uml.boot_with(directory, DeviceId.RNG, device) as (guest, _):
        got = await guest.sh("head -c 4000 /dev/hwrng | hexdump -v -e '1/1 \"%02x\"'")
        assert got == "000102ff" * 1000

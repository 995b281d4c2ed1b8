"""Rings whose back-end died, and whose front-end does not know how far it had come; nothing was noted."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.virtio import packed
from tests.vhost_user.ring.rig import MODERN, PACKED_START, Rig, work
from vhost_user.ring import BrokenRingError, Ring

KINDS = pytest.mark.parametrize("kind", ["split", "packed"])
SIZE = 8

Step = tuple[int, int]
"""How many requests the driver makes, and how many of those that are there the device then does."""


def serve(device: Ring, limit: int = SIZE) -> int:
    chains = device.pop(limit)
    device.push([work(chain) for chain in chains])
    return len(chains)


def run(rig: Rig, device: Ring, steps: list[Step], *, writable: int = 1) -> int:
    """Do requests, of one descriptor by default; return how many are open in the end."""
    open_requests = 0
    for made, done in steps:
        room = SIZE // writable - open_requests
        for _ in range(min(made, room)):
            rig.add([], [4] * writable)
            open_requests += 1
        rig.driver.publish()
        open_requests -= serve(device, done) if done else 0
        rig.collect()
    return open_requests


@KINDS
@example(steps=[(1, 1), (8, 0)])  # a full ring: the first descriptor is in its second lap, the others not
@given(steps=st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=20))
def test_next_one_goes_on_behind_what_was_given_back_last(kind: str, steps: list[Step]) -> None:
    """Whatever was not given back is done by the next back-end, and nothing else."""
    with closing(Rig(kind, SIZE, MODERN)) as rig:
        left = run(rig, first := rig.start(), steps)
        device, start = rig.start(doubted=True), PACKED_START if kind == "packed" else 0
        assert device.base == first.base
        assert device.given_base == (None if first.base == start else start)
        assert serve(device) == left
        assert len(rig.collect()) == left
        assert run(rig, device, [(3, 3)] * SIZE) == 0


@KINDS
def test_base_that_can_be_is_believed(kind: str) -> None:
    """Two of three chains were taken, and the second one given back: so a front-end knows that drained it."""
    with closing(Rig(kind, SIZE, MODERN)) as rig:
        run(rig, device := rig.start(), [(3, 3)] * 5)
        rig.add([], [4])
        rig.add([], [4])
        rig.add([], [4])
        rig.driver.publish()
        second = device.pop(2)[1]
        device.push([work(second)])
        again = rig.start(device.base)
        assert (again.given_base, again.base) == (None, device.base)
        assert serve(again) == 1


def test_packed_ring_of_longer_chains_does_not_tell_and_breaks() -> None:
    with closing(Rig("packed", SIZE, MODERN)) as rig:
        run(rig, device := rig.start(), [(1, 1)] * 5, writable=2)
        with pytest.raises(BrokenRingError, match=r"cannot go on at 0x80008000.*--without RING_PACKED"):
            rig.start()
        assert rig.start(device.base).base == device.base


@pytest.mark.parametrize("laps", [1, 2])
def test_packed_ring_of_which_only_the_available_place_is_told(laps: int) -> None:
    """As DPDK tells it; the used place is the same, as nothing is under way."""
    with closing(Rig("packed", SIZE, MODERN)) as rig:
        run(rig, device := rig.start(), [(SIZE, SIZE)] * (laps - 1) + [(5, 5)])
        again = rig.start(device.base & 0xFFFF)
        assert again.base == device.base
        run(rig, again, [(3, 3)] * 5)


def test_front_end_that_tells_the_available_place_only() -> None:
    assert packed.whole_base(0x8000) == packed.START
    assert packed.whole_base(0x8003) == 0x8003_8003
    assert packed.whole_base(0x0003) == 0x0003  # three are in use
    assert packed.whole_base(0x8005_8006) == 0x8005_8006
    assert packed.whole_base(0x0005_8001) == 0x0005_8001

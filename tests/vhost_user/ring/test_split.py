"""Split rings: where they start, who is notified when, byte order, and what the dirty log is told."""

from __future__ import annotations

import gc
import struct
from typing import TYPE_CHECKING

import pytest

from protocol.virtio import split
from protocol.virtio.features import Feature
from tests.vhost_user.chains import completed
from tests.vhost_user.ring.raw import DATA, NEXT, SIZE, WRITE, RawSplit
from tests.vhost_user.ring.rig import MODERN, USER, Rig, work
from vhost_user.ring import RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.ring import Chain, Ring


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    """Return a function that makes split rigs."""
    rigs: list[Rig] = []

    def make(size: int = SIZE, features: int = MODERN, **options: bool) -> Rig:
        rigs.append(Rig("split", size, features, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
    gc.collect()


def done(*chains: Chain) -> list[Chain]:
    return [work(chain) for chain in chains]


def serve(device: Ring) -> bool:
    """Do all that is available. Returns whether the driver wants a call."""
    return device.push(done(*device.pop(SIZE)))


def request(rig: Rig, count: int = 1) -> bool:
    """Make requests available. Returns whether the device wants a kick."""
    for _ in range(count):
        rig.add([4], [4], indirect=rig.config.has(Feature.INDIRECT_DESC))
    return rig.driver.publish()


# Where a ring starts and stops


def test_base_runs_free(make: Callable[..., Rig]) -> None:
    """Rule 3: GET_VRING_BASE is not taken modulo the ring's size, and wraps at 65536."""
    rig = make()
    device = rig.start()
    for _ in range(SIZE + 1):
        request(rig)
        serve(device)
        rig.collect()
    assert device.base == SIZE + 1
    assert rig.start(SIZE + 1).base == SIZE + 1


def test_index_wraps_at_65536(make: Callable[..., Rig]) -> None:
    rig = make()
    device = rig.start()
    for _ in range(0x10000 // SIZE + 1):
        request(rig, SIZE)
        serve(device)
        assert len(rig.collect()) == SIZE
    assert device.base == SIZE


def test_rule_04_used_index_comes_from_the_ring(make: Callable[..., Rig]) -> None:
    """A guest that reboots sets up a new ring; one whose back-end restarts goes on with the old one."""
    rig = make()
    device = rig.start()
    request(rig, 3)
    serve(device)
    rig.collect()
    request(rig)
    serve(rig.start(device.base))
    assert len(rig.collect()) == 1, "the used index went on from 3"
    fresh = make()
    request(fresh)
    serve(fresh.start(0))
    assert len(fresh.collect()) == 1, "and begins with 0 in a new ring"


def test_ring_reset_starts_again_from_nothing(make: Callable[..., Rig]) -> None:
    """RING_RESET: the driver takes a queue away and sets it up again, while others run."""
    rig = make(features=MODERN | Feature.RING_RESET)
    request(rig, 3)
    rig.start().pop(2)
    again = make(features=MODERN | Feature.RING_RESET)
    request(again)
    device = again.start(0)
    assert device.base == 0
    serve(device)
    assert len(again.collect()) == 1


def test_rewound_chains_are_taken_again_by_whoever_comes_next(make: Callable[..., Rig]) -> None:
    rig = make()
    request(rig, 3)
    device = rig.start()
    first, *rest = device.pop(3)
    device.rewind(rest)
    device.push(done(first))
    assert device.base == 1
    serve(rig.start(device.base))
    assert rig.collect() == [0, 1, 2]


# Notifications


def test_calls_can_be_suppressed(make: Callable[..., Rig]) -> None:
    rig = make()
    device = rig.start()
    request(rig)
    assert serve(device), "the first call after a start is always made"
    rig.driver.want_calls(False)
    request(rig)
    assert not serve(device)
    rig.driver.want_calls(True)
    request(rig)
    assert serve(device)


def test_kicks_can_be_suppressed(make: Callable[..., Rig]) -> None:
    rig = make()
    device = rig.start()
    assert request(rig)
    assert not device.want_kicks(False)
    assert not request(rig)
    assert device.want_kicks(True), "chains came meanwhile, without a kick"
    device.pop(SIZE)
    assert not device.want_kicks(True)
    assert request(rig)


def test_event_index_asks_for_the_call_at_one_use(make: Callable[..., Rig]) -> None:
    rig = make(features=MODERN | Feature.EVENT_IDX)
    device = rig.start()
    request(rig, 4)
    chains = device.pop(4)
    device.push([])
    rig.driver.want_calls(True, after=2)
    assert device.push(done(chains[0])), "the first one after a start"
    assert not device.push(done(chains[1]))
    assert device.push(done(chains[2]))
    assert not device.push(done(chains[3]))


def test_event_index_in_the_middle_of_a_batch(make: Callable[..., Rig]) -> None:
    """One notification a batch, and only for one that passes the place."""
    rig = make(features=MODERN | Feature.EVENT_IDX)
    device = rig.start()
    request(rig)
    serve(device)
    rig.collect()
    request(rig, 6)
    rig.driver.want_calls(True, after=3)
    chains = device.pop(6)
    assert not device.push(done(*chains[:3]))
    assert device.push(done(*chains[3:]))


def test_event_index_asks_for_the_kick(make: Callable[..., Rig]) -> None:
    rig = make(features=MODERN | Feature.EVENT_IDX)
    device = rig.start()
    assert request(rig)
    assert not request(rig), "a kick is under way"
    device.pop(SIZE)
    assert not request(rig), "the device has not asked again"
    assert device.want_kicks(True)
    device.pop(SIZE)
    assert not device.want_kicks(True)
    assert request(rig)


@pytest.mark.parametrize("event_index", [0, int(Feature.EVENT_IDX)])
def test_notify_on_empty_calls_although_suppressed(make: Callable[..., Rig], event_index: int) -> None:
    rig = make(features=Feature.NOTIFY_ON_EMPTY | event_index)
    device = rig.start()
    request(rig)
    serve(device)
    rig.collect()
    rig.driver.want_calls(False)
    request(rig, 3)
    one, two, three = device.pop(3)
    assert not device.push(done(one))
    request(rig)
    assert not device.push(done(two, three)), "one is available"
    assert serve(device)


def test_in_order_holds_back_what_was_finished_early(make: Callable[..., Rig]) -> None:
    rig = make(features=MODERN | Feature.IN_ORDER)
    device = rig.start()
    request(rig, 3)
    one, two, three = device.pop(3)
    assert not device.push(done(three))
    assert not device.push(done(two))
    assert rig.collect() == []
    assert device.push(done(one)), "one call for all three"
    assert rig.collect() == [0, 1, 2]


def test_out_of_order_without_that_feature(make: Callable[..., Rig]) -> None:
    rig = make()
    device = rig.start()
    request(rig, 3)
    one, two, three = device.pop(3)
    device.push(done(three, one))
    device.push(done(two))
    assert rig.collect() == [2, 0, 1]


# Layout


def test_legacy_big_endian_ring() -> None:
    """A legacy guest's ring is in its own byte order (SET_VRING_ENDIAN), bytes for bytes."""
    rig = Rig("split", SIZE, 0, big_endian=True)
    view, parts = rig.view, split.layout(SIZE)
    view[: parts.end] = bytes(parts.end)
    struct.pack_into(">QIHH", view, 0, DATA, 3, NEXT, 1)
    struct.pack_into(">QIHH", view, 16, DATA + 64, 5, WRITE, 0)
    struct.pack_into(">HHH", view, parts.avail, 0, 1, 0)
    device = rig.start()
    (chain,) = device.pop(1)
    assert (chain.readable_length, chain.writable_length) == (3, 5)
    device.push([completed(chain, 4)])
    assert struct.unpack_from(">HHII", view, parts.used) == (0, 1, 0, 4)
    device.want_kicks(False)
    assert struct.unpack_from(">H", view, parts.used) == (split.USED_NO_NOTIFY,)
    del chain, device
    rig.close()


def test_modern_ring_is_little_endian_whatever_was_said() -> None:
    raw = RawSplit()
    raw.descriptors((DATA, 3, 0, 0))
    raw.offer(0)
    config = RingConfig(SIZE, USER, USER + raw.parts.avail, USER + raw.parts.used, MODERN, big_endian=True)
    assert len(SplitRing(raw.rig.memory, config, 0).pop(1)) == 1
    raw.close()


def test_ring_that_ends_with_the_memory() -> None:
    """Without EVENT_IDX there is nothing behind the last used chain, perhaps not even memory."""
    raw = RawSplit()
    end = USER + raw.rig.region.size
    config = RingConfig(SIZE, USER, USER + raw.parts.avail, end - split.used_bytes(SIZE, event_index=False))
    raw.descriptors((DATA, 3, 0, 0))
    raw.offer(0)
    ring = SplitRing(raw.rig.memory, config, 0)
    ring.push([completed(chain, 0) for chain in ring.pop(1)])
    assert raw.rig.view[-split.used_bytes(SIZE, event_index=False) :][2] == 1
    del ring
    raw.close()


def test_readable_buffers_cannot_be_written(make: Callable[..., Rig]) -> None:
    rig = make()
    request(rig)
    (chain,) = rig.start().pop(1)
    with pytest.raises(TypeError):
        chain.readable_buffers[0][0] = 1
    chain.writable_buffers[0][0] = 1


def test_new_ring_is_all_zero_until_the_driver_writes(make: Callable[..., Rig]) -> None:
    rig = make()
    device = rig.start()
    assert device.all_zero()
    request(rig)
    assert not device.all_zero()

"""Packed rings: where they start, who is notified when, and what a used descriptor says."""

from __future__ import annotations

import gc
import struct
from typing import TYPE_CHECKING

import pytest

from protocol.virtio import packed
from protocol.virtio.features import Feature
from protocol.virtio.split import DescriptorFlag
from tests.vhost_user.chains import completed
from tests.vhost_user.ring.raw import SIZE
from tests.vhost_user.ring.rig import MODERN, PACKED_START, Rig, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.ring import Chain, Ring


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    """Return a function that makes packed rigs."""
    rigs: list[Rig] = []

    def make(size: int = SIZE, features: int = MODERN, **options: bool) -> Rig:
        rigs.append(Rig("packed", size, features, **options))
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
    """Make requests of one descriptor available. Returns whether the device wants a kick."""
    for _ in range(count):
        rig.add([4], [4], indirect=True)
    return rig.driver.publish()


def test_rule_03_base_holds_both_places_with_their_wrap_counters(make: Callable[..., Rig]) -> None:
    """Rule 3: available in bits 0 to 14, its wrap counter in 15; used in 16 to 30 and 31."""
    rig = make(5)
    device = rig.start(PACKED_START)
    assert device.base == 0x8000_8000
    request(rig, 3)
    chains = [*device.pop(3)]
    assert device.base == 0x8000_8003
    device.push(done(chains[0]))
    assert device.base == 0x8001_8003
    rig.collect()
    request(rig, 3)
    chains += device.pop(3)
    assert device.base == 0x8001_0001, "the available place is in its second lap"
    device.push(done(*chains[1:]))
    assert device.base == 0x0001_0001


def test_rule_03_a_ring_goes_on_where_it_stopped(make: Callable[..., Rig]) -> None:
    rig = make(5)
    device = rig.start()
    served = []
    for _ in range(11):
        request(rig, 3)
        serve(device)
        served += rig.collect()
        device = rig.start(device.base)
    assert served == list(range(33))


def test_rewound_chains_are_taken_again_by_whoever_comes_next(make: Callable[..., Rig]) -> None:
    rig = make(3)
    device = rig.start()
    for _ in range(5):
        request(rig, 3)
        first, *rest = device.pop(3)
        device.rewind(rest)
        device.push(done(first))
        device = rig.start(device.base)
        serve(device)
        assert len(rig.collect()) == 3


def test_used_descriptor_of_a_list_is_where_the_list_began(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.add([1, 2], [3])
    rig.driver.publish()
    device = rig.start()
    (chain,) = device.pop(1)
    assert chain.slots == 3
    device.push([completed(chain, 3)])
    length, buffer_id, flags = struct.unpack_from("<IHH", rig.view, 8)
    assert (length, buffer_id) == (3, chain.head)
    assert flags == packed.used_flags(True) | DescriptorFlag.WRITE
    assert device.base >> 16 & 0x7FFF == 3


def test_used_descriptor_says_that_nothing_was_written(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.add([1], [])
    rig.driver.publish()
    device = rig.start()
    serve(device)
    assert struct.unpack_from("<H", rig.view, 14) == (packed.used_flags(True),)


def test_driver_sees_the_first_of_a_batch_last(make: Callable[..., Rig]) -> None:
    """A batch with one descriptor hidden: the driver finds nothing, with it everything."""
    rig = make()
    request(rig, 3)
    device = rig.start()
    chains = [*device.pop(3)]
    available = bytes(rig.view[14:16])
    device.push(done(*chains))
    used = bytes(rig.view[14:16])
    rig.view[14:16] = available
    assert rig.collect() == []
    rig.view[14:16] = used
    assert rig.collect() == [0, 1, 2]


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


@pytest.mark.parametrize("before", [0, 3, 5])
def test_event_index_asks_for_the_call_at_one_descriptor(make: Callable[..., Rig], before: int) -> None:
    """Also where the place is in the next lap of the ring."""
    rig = make(7, features=MODERN | Feature.EVENT_IDX)
    device = rig.start()
    request(rig)
    serve(device)
    rig.collect()
    for _ in range(before):
        request(rig)
        serve(device)
        rig.collect()
    request(rig, 4)
    rig.driver.want_calls(True, after=2)
    chains = device.pop(4)
    calls = [device.push(done(chain)) for chain in chains]
    assert calls == [False, False, True, False]


@pytest.mark.parametrize("before", [0, 5, 6])
def test_event_index_asks_for_the_kick(make: Callable[..., Rig], before: int) -> None:
    rig = make(7, features=MODERN | Feature.EVENT_IDX)
    device = rig.start()
    for _ in range(before):
        request(rig)
        serve(device)
        rig.collect()
    assert not device.want_kicks(True)
    assert request(rig)
    assert not request(rig), "a kick is under way"
    assert device.want_kicks(True)


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

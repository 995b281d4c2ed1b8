"""Any bytes in a ring's memory give chains within the memory, or BrokenRingError, and nothing else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from tests.vhost_user.chains import completed
from tests.vhost_user.ring.rig import GUEST, MEMORY_SIZE, MODERN, TABLES, Rig
from vhost_user.memory import guest_address_of
from vhost_user.ring import BrokenRingError

if TYPE_CHECKING:
    from vhost_user.ring import Chain

SIZE = 4
LAST = GUEST + MEMORY_SIZE
ADDRESSES = st.one_of(
    st.sampled_from(
        [GUEST, GUEST + TABLES, GUEST + TABLES + 16, LAST - 1, LAST - 16, LAST, 0, (1 << 64) - 1]
    ),
    st.integers(GUEST - 64, LAST + 64),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(st.sampled_from([0, 1, 15, 16, 32, 64, MEMORY_SIZE]), st.integers(0, (1 << 32) - 1))
FLAGS = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(0, 0xFFFF))
SMALL = st.one_of(st.integers(0, SIZE + 1), st.integers(0, 0xFFFF))
SPLIT_DESCRIPTOR = st.builds(struct.Struct("<QIHH").pack, ADDRESSES, LENGTHS, FLAGS, SMALL)
OWNERS = st.sampled_from([packed.AVAIL, packed.USED, 0, packed.AVAIL | packed.USED])
PACKED_DESCRIPTOR = st.builds(
    lambda address, length, buffer_id, flags, owner: struct.pack(
        "<QIHH", address, length, buffer_id, flags & ~0x8080 | owner
    ),
    ADDRESSES,
    LENGTHS,
    SMALL,
    FLAGS,
    OWNERS,
)


def tables(descriptor: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(descriptor, min_size=SIZE, max_size=SIZE).map(b"".join)


def check(rig: Rig, chain: Chain) -> None:
    """Assert that a chain is within memory, and not longer than it can be."""
    for view in chain.writable_buffers:
        address = guest_address_of(view)
        assert address >= GUEST
        assert address + len(view) <= LAST
    for view in [*chain.readable_buffers, *chain.writable_buffers]:
        assert view.obj is rig.view.obj
        assert 0 < len(view) <= MEMORY_SIZE
    assert chain.readable_length == sum(map(len, chain.readable_buffers))
    assert chain.writable_length == sum(map(len, chain.writable_buffers))
    assert chain.readable_length + chain.writable_length <= 0xFFFF_FFFF


def run(rig: Rig, changeable: list[slice]) -> None:
    """Serve what is there until there is no more; the device may change its own parts of the ring only."""
    before = bytearray(rig.view)
    try:
        device = rig.start()
        for _ in range(4):
            chains = device.pop(SIZE)
            for chain in chains:
                check(rig, chain)
            device.push([completed(chain, 1) for chain in chains])
            device.want_kicks(True)
    except BrokenRingError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- both outcomes are right
    for part in changeable:
        before[part] = rig.view[part]
    assert rig.view == before


@pytest.mark.parametrize("tracked", [False, True])
@given(
    descriptors=tables(SPLIT_DESCRIPTOR),
    indirect=tables(SPLIT_DESCRIPTOR),
    rings=st.tuples(
        st.tuples(SMALL, SMALL, *[SMALL] * SIZE, SMALL),
        st.binary(min_size=split.used_bytes(SIZE, event_index=True), max_size=46),
    ),
    features=st.sampled_from([MODERN, MODERN | Feature.EVENT_IDX, MODERN | Feature.IN_ORDER, 0]),
)
def test_split(
    tracked: bool, descriptors: bytes, indirect: bytes, rings: tuple[tuple[int, ...], bytes], features: int
) -> None:
    avail, used = rings
    rig = Rig("split", SIZE, features, tracked=tracked)
    parts = split.layout(SIZE)
    rig.view[: len(descriptors)] = descriptors
    rig.view[TABLES : TABLES + len(indirect)] = indirect
    struct.pack_into(f"<{3 + SIZE}H", rig.view, parts.avail, *avail)
    rig.view[parts.used : parts.used + len(used)] = used
    run(rig, [slice(parts.used, parts.end)])
    rig.close()


@pytest.mark.parametrize("tracked", [False, True])
@given(
    descriptors=tables(PACKED_DESCRIPTOR),
    indirect=tables(PACKED_DESCRIPTOR),
    events=st.binary(min_size=8, max_size=8),
    features=st.sampled_from([MODERN, MODERN | Feature.EVENT_IDX, MODERN | Feature.IN_ORDER]),
)
def test_packed(tracked: bool, descriptors: bytes, indirect: bytes, events: bytes, features: int) -> None:
    rig = Rig("packed", SIZE, features, tracked=tracked)
    end = len(descriptors)
    rig.view[:end] = descriptors
    rig.view[TABLES : TABLES + len(indirect)] = indirect
    rig.view[end : end + 8] = events
    run(rig, [slice(0, end), slice(end + 4, end + 8)])
    rig.close()

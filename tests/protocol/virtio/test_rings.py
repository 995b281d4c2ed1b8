"""Layouts of split and packed rings and of the in-flight buffer."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import inflight
from protocol.virtio import packed, split
from protocol.virtio.packed import EventFlags


def test_parts_of_a_split_ring() -> None:
    """Section 2.7: 16 bytes a descriptor, 6 + 2 and 6 + 8 an entry with the event index."""
    assert split.table_bytes(256) == 4096
    assert split.avail_bytes(256, event_index=True) == 6 + 2 * 256
    assert split.used_bytes(256, event_index=True) == 6 + 8 * 256
    assert split.avail_bytes(256, event_index=False) == 4 + 2 * 256
    assert split.used_bytes(256, event_index=False) == 4 + 8 * 256


@given(size=st.integers(0, 15).map(lambda bits: 1 << bits), align=st.sampled_from([4, 4096]))
def test_contiguous_ring(size: int, align: int) -> None:
    """Section 2.7.2: the legacy layout, with the used ring aligned."""
    parts = split.layout(size, align)
    assert parts.avail == 16 * size
    assert parts.used % align == 0
    assert 0 <= parts.used - (parts.avail + 6 + 2 * size) < align
    assert parts.end == parts.used + 6 + 8 * size


@given(old=st.integers(0, 0xFFFF), count=st.integers(0, 0x7FFF), event=st.integers(0, 0xFFFF))
def test_event_is_due_when_its_index_is_passed(old: int, count: int, event: int) -> None:
    passed = {index & 0xFFFF for index in range(old, old + count)}
    assert split.needs_event(event, old + count & 0xFFFF, old) == (event in passed)


@given(
    size=st.integers(1, 20),
    start=st.integers(0, 19),
    wrap=st.booleans(),
    ahead=st.integers(0, 39),
    data=st.data(),
)
def test_packed_event_is_due_when_its_descriptor_is_passed(
    size: int, start: int, wrap: bool, ahead: int, data: st.DataObject
) -> None:
    start, ahead = start % size, ahead % (2 * size)
    count = data.draw(st.integers(1, size))

    def place(steps: int) -> tuple[int, bool]:
        laps, slot = divmod(start + steps, size)
        return slot, wrap ^ bool(laps % 2)

    word = packed.event_word(packed.place(*place(ahead)), EventFlags.DESCRIPTOR)
    assert packed.needs_packed_event(word, *place(count), count, size) == (ahead < count)


@pytest.mark.parametrize(("flags", "wanted"), [(EventFlags.ENABLE, True), (EventFlags.DISABLE, False)])
def test_packed_events_on_and_off(flags: EventFlags, wanted: bool) -> None:
    assert packed.needs_packed_event(packed.event_word(3, flags), 1, True, 1, 4) == wanted


@given(slot=st.integers(0, 0x7FFF), wrap=st.booleans())
def test_place_in_16_bits(slot: int, wrap: bool) -> None:
    assert packed.split_place(packed.place(slot, wrap)) == (slot, wrap)
    assert packed.place(slot, wrap) == slot + 0x8000 * wrap


def test_owners_of_a_packed_descriptor() -> None:
    """Section 2.8.1: available when AVAIL is the wrap counter and USED is not, used when both are."""
    assert [packed.available_flags(True), packed.available_flags(False)] == [1 << 7, 1 << 15]
    assert [packed.used_flags(True), packed.used_flags(False)] == [1 << 7 | 1 << 15, 0]


def test_rule_20_sizes_of_the_inflight_buffer() -> None:
    """16 and 16 bytes for split, 32 and 32 for packed, each queue's part aligned to 64."""
    assert inflight.part_bytes(1, packed=False) == 32
    assert inflight.part_bytes(1, packed=True) == 64
    assert inflight.queue_bytes(128, packed=False) == 16 + 16 * 128 + 48
    assert inflight.queue_bytes(127, packed=False) == 2048
    assert inflight.queue_bytes(128, packed=True) == 32 + 32 * 128 + 32


def test_rule_20_fields_of_the_inflight_buffer() -> None:
    """The structures of the specification, as a C compiler lays them out."""
    header = bytes(struct.pack("=QHHHHHHBB7x3x", 1, 2, 3, 4, 5, 6, 7, 8, 9))
    words = memoryview(header).cast("H")
    assert [words[place] for place in (inflight.VERSION_16, inflight.ENTRIES_16)] == [2, 3]
    assert [words[place] for place in (inflight.FREE_HEAD_16, inflight.OLD_FREE_HEAD_16)] == [4, 5]
    position = header[8 * inflight.POSITION_64 : 8 * inflight.POSITION_64 + 8]
    assert struct.unpack(inflight.POSITION_FORMAT, position) == (6, 7, 8, 9)
    entry = struct.pack("=BxHHHQHHIQ", 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert len(entry) == inflight.PACKED_SIZE
    words = memoryview(entry).cast("H")
    places = (inflight.PACKED_NEXT_16, inflight.PACKED_LAST_16, inflight.PACKED_NUM_16)
    assert [words[place] for place in places] == [2, 3, 4]
    assert memoryview(entry).cast("Q")[inflight.PACKED_COUNTER_64] == 5
    assert struct.unpack_from(inflight.PACKED_DESCRIPTOR_FORMAT, entry, inflight.PACKED_DESCRIPTOR_8) == (
        *(6, 7),
        *(8, 9),
    )
    entry = struct.pack("=B5xHQ", 1, 2, 3)
    assert len(entry) == inflight.SPLIT_SIZE
    assert memoryview(entry).cast("H")[inflight.SPLIT_NEXT_16] == 2
    assert memoryview(entry).cast("Q")[inflight.SPLIT_COUNTER_64] == 3
    header = struct.pack("=QHHHH", 1, 2, 3, 4, 5)
    words = memoryview(header).cast("H")
    assert [words[inflight.LAST_BATCH_HEAD_16], words[inflight.USED_INDEX_16]] == [4, 5]

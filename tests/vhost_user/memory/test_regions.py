"""Guest memory: regions, their translation, their changes and their removal."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fds import OwnedFd
from tests.vhost_user.memory.layout import PAGE, A, B, C, file_of, open_fds
from vhost_user.memory.mapping import Mapping, map_shared
from vhost_user.memory.regions import (
    BadAddressError,
    BadRegionError,
    GuestMemory,
    Region,
)


def test_translation_by_guest_and_by_user_address(memory: GuestMemory) -> None:
    memory.set_table([(A, file_of(A.size)), (B, file_of(B.size))])
    (view,) = memory.translate(A.guest_address + 10, 5, write=True)
    view[:] = b"hello"
    assert bytes(memory.translate_user(A.user_address + 10, 5)) == b"hello"
    assert bytes(memory.translate_user(B.user_address, B.size)) == bytes(B.size)
    assert [window.start for window in memory.regions] == [A.guest_address, B.guest_address]


def test_flat_table_has_the_address_of_each_region_in_this_process(memory: GuestMemory) -> None:
    memory.set_table([(B, file_of(B.size)), (A, file_of(A.size))])
    for region, (start, length, address) in zip((A, B), memory.flat_table, strict=True):
        assert (start, length) == (region.guest_address, region.size)
        memory.translate_user(region.user_address + 5, 2)[:] = b"hi"
        assert ctypes.string_at(address + 5, 2) == b"hi"
    memory.remove(A)
    assert [start for start, _, _ in memory.flat_table] == [B.guest_address]
    memory.use_iotlb(True)
    assert memory.flat_table == ()


def test_translation_across_a_region_border(memory: GuestMemory) -> None:
    memory.set_table([(B, file_of(B.size)), (A, file_of(A.size)), (C, file_of(C.size))])
    views = memory.translate(B.guest_address - 3, 7, write=True)
    assert [len(view) for view in views] == [3, 4]
    views[1][:] = b"abcd"
    assert bytes(memory.translate_user(B.user_address, 4)) == b"abcd"


@pytest.mark.parametrize(
    ("address", "length", "missing"),
    [
        (0, 1, "0x0"),
        (A.guest_address - 1, 2, "0xfffff"),
        (B.guest_address + B.size - 1, 2, "0x106000"),
        (C.guest_address + C.size, 1, "0x201000"),
        ((1 << 64) - 1, 2, "0xffffffffffffffff"),
    ],
)
def test_address_outside_memory(memory: GuestMemory, address: int, length: int, missing: str) -> None:
    memory.set_table([(A, file_of(A.size)), (B, file_of(B.size)), (C, file_of(C.size))])
    with pytest.raises(BadAddressError, match=f"^no memory region holds guest address {missing};.*share=on"):
        memory.translate(address, length, write=False)


@pytest.mark.parametrize(("address", "length"), [(0, 1), (A.user_address + A.size - 1, 2), (1 << 63, 1)])
def test_user_address_outside_one_region(memory: GuestMemory, address: int, length: int) -> None:
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    with pytest.raises(BadAddressError, match="memory region"):
        memory.translate_user(address, length)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    gaps=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    start=st.integers(0, 40 * PAGE),
    length=st.integers(1, 12 * PAGE),
)
def test_translation_is_that_of_a_table(sizes: list[int], gaps: list[int], start: int, length: int) -> None:
    """Byte by byte: the model is a dict of pages."""
    memory, pages, address = GuestMemory(), {}, 0
    for number, (size, gap) in enumerate(zip(sizes, gaps, strict=False)):
        address += gap * PAGE
        fd = file_of(size * PAGE)
        for page in range(size):
            mark = bytes([number, page])
            os.pwrite(fd.fileno(), mark, page * PAGE)
            pages[address // PAGE + page] = mark
        memory.add(Region(address, size * PAGE, address), fd)
        address += size * PAGE
    wanted = range(start // PAGE, (start + length - 1) // PAGE + 1)
    if all(page in pages for page in wanted):
        found = b"".join(memory.translate(start, length, write=False))
        assert len(found) == length
        for page in wanted:
            place = page * PAGE - start
            if 0 <= place <= length - 2:
                assert found[place : place + 2] == pages[page]
    else:
        with pytest.raises(BadAddressError):
            memory.translate(start, length, write=False)


def test_readable_memory_cannot_be_written(memory: GuestMemory) -> None:
    memory.add(A, file_of(A.size))
    (view,) = memory.translate(A.guest_address, 1, write=False)
    with pytest.raises(TypeError):
        view[0] = 1


def test_rule_16_mmap_offset_is_an_offset_in_the_file(memory: GuestMemory) -> None:
    fd = file_of(8 * PAGE)
    os.pwrite(fd.fileno(), b"here", 3 * PAGE + 100)
    memory.add(Region(0x1000, PAGE, 0x9000, 3 * PAGE + 100), fd)
    assert bytes(memory.translate(0x1000, 4, write=False)[0]) == b"here"
    memory.translate(0x1000 + PAGE - 2, 2, write=True)[0][:] = b"ok"
    assert bytes(memory.translate_user(0x9000 + PAGE - 2, 2)) == b"ok"


def test_rule_16_hugetlbfs_takes_offsets_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filesystem says how large its pages are; offset and length of a mapping are multiples of that."""
    huge = 2 << 20
    fd = file_of(4 * huge)
    os.pwrite(fd.fileno(), b"here", huge + PAGE)
    asked = []

    class Recorder(Mapping):
        def __new__(cls, fileno: int, length: int, flags: int, **rest: Any) -> Recorder:
            asked.append((rest["offset"], length))
            return super().__new__(cls, fileno, length, flags, **rest)

    class Status:
        f_bsize = huge

    monkeypatch.setattr("os.fstatvfs", lambda _: Status)
    monkeypatch.setattr("vhost_user.memory.mapping.Mapping", Recorder)
    with fd:
        view = map_shared(fd, huge, huge + PAGE)
    assert (len(view), bytes(view[:4])) == (huge, b"here")
    assert asked == [(huge, 2 * huge)]


def test_rule_16_removal_by_addresses_and_size(memory: GuestMemory) -> None:
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    for wrong in (
        Region(A.guest_address, A.size, C.user_address),
        Region(C.guest_address, A.size, A.user_address),
        Region(A.guest_address, A.size - 1, A.user_address),
    ):
        with pytest.raises(BadRegionError, match="there is no memory region of"):
            memory.remove(wrong)
    memory.remove(Region(A.guest_address, A.size, A.user_address, 12345))
    assert [window.start for window in memory.regions] == [C.guest_address]
    with pytest.raises(BadRegionError):
        memory.remove(A)


def test_rule_18_a_table_replaces_the_one_before(memory: GuestMemory) -> None:
    old = file_of(A.size)
    memory.set_table([(A, old.dup()), (C, file_of(C.size))])
    (held,) = memory.translate(A.guest_address, 4, write=True)
    before = memory.generation
    memory.set_table([(A, file_of(A.size))])
    assert memory.generation != before
    assert len(memory) == 1
    held[:] = b"late"
    assert os.pread(old.fileno(), 4, 0) == b"late", "a request in flight keeps its buffers"
    assert bytes(memory.translate(A.guest_address, 4, write=False)[0]) == bytes(4)
    old.close()


@pytest.mark.parametrize("change", ["add", "remove", "set_table", "close"])
def test_rule_18_rings_learn_of_every_change(memory: GuestMemory, change: str) -> None:
    memory.add(A, file_of(A.size))
    before = memory.generation
    {
        "add": lambda: memory.add(C, file_of(C.size)),
        "remove": lambda: memory.remove(A),
        "set_table": lambda: memory.set_table([]),
        "close": memory.close,
    }[change]()
    assert memory.generation != before


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (A, "memory regions overlap: 0x4000 bytes at guest address 0x100000 and"),
        (Region(A.guest_address + PAGE, PAGE, 0), "memory regions overlap"),
        (Region(A.guest_address - PAGE, 2 * PAGE, 0), "memory regions overlap"),
        (Region(A.guest_address - PAGE, 9 * PAGE, 0), "memory regions overlap"),
        (Region(0, 0, 0), "0 bytes cannot be mapped"),
        (Region(0, 17 * PAGE, 0), "reach past the end of a file of 65536"),
        (Region(0, 16 * PAGE, 0, 1), "reach past the end of a file of 65536"),
        (Region(0, PAGE, 0, 1 << 63), "reach past the end"),
        (Region((1 << 64) - PAGE, 2 * PAGE, 0), "past the end of the address space"),
        (Region(0, 2 * PAGE, (1 << 64) - PAGE), "past the end of the address space"),
    ],
)
def test_region_that_cannot_be(memory: GuestMemory, region: Region, reason: str) -> None:
    """It is refused in one line, nothing has changed, and the descriptors are closed."""
    memory.add(A, file_of(A.size))
    before, fds = memory.generation, open_fds()
    with pytest.raises(BadRegionError, match=reason) as caught:
        memory.add(region, file_of(16 * PAGE))
    assert "\n" not in str(caught.value)
    fd, spare = file_of(16 * PAGE), file_of(16 * PAGE)
    with pytest.raises(BadRegionError):
        memory.set_table([(A, file_of(A.size)), (region, fd), (C, spare)])
    assert fd.closed
    assert spare.closed
    assert memory.generation == before
    assert [window.start for window in memory.regions] == [A.guest_address]
    del caught
    gc.collect()
    assert open_fds() == fds


def test_region_that_comes_again_stays_mapped_and_another_file_does_not(memory: GuestMemory) -> None:
    with file_of(A.size) as first, file_of(A.size) as second:
        memory.set_table([(A, first.dup())])
        held = memory.translate(A.guest_address, 4, write=True)[0]
        memory.set_table([(A, first.dup()), (C, file_of(C.size))])
        assert memory.translate(A.guest_address, 4, write=True)[0].obj is held.obj
        memory.set_table([(A, second.dup())])
        assert memory.translate(A.guest_address, 4, write=True)[0].obj is not held.obj


def test_memory_that_cannot_be_mapped(memory: GuestMemory) -> None:
    fd = OwnedFd(socket.socket().detach())
    with pytest.raises(BadRegionError, match=r"16384 bytes at 0x0 cannot be mapped: \w+ \w+"):
        memory.add(A, fd)
    assert fd.closed


def test_memory_opened_read_only(memory: GuestMemory) -> None:
    with file_of(A.size) as fd:
        reader = OwnedFd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC))
    with pytest.raises(BadRegionError, match="Permission denied"):
        memory.add(A, reader)


def test_nothing_stays_mapped() -> None:
    memory = GuestMemory()
    gc.collect()
    before = open_fds()
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    (view,) = memory.translate(A.guest_address, 4, write=True)
    memory.close()
    view[:] = b"late"
    del view
    assert open_fds() == before
    with pytest.raises(BadAddressError):
        memory.translate(A.guest_address, 1, write=False)


def test_user_addresses_may_be_guest_addresses(memory: GuestMemory) -> None:
    """GPA_ADDRESSES: the front-end gives guest addresses wherever it gave its own before."""
    memory.add(Region(A.guest_address, A.size, A.guest_address), file_of(A.size))
    memory.translate(A.guest_address + 8, 2, write=True)[0][:] = b"ok"
    assert bytes(memory.ring_part(A.guest_address + 8, 2)) == b"ok"


def test_no_memory_at_all_names_what_to_give_qemu() -> None:
    with pytest.raises(BadAddressError, match=r"shared no memory at all; give QEMU -object .*share=on"):
        GuestMemory().ring_part(0x1000, 16)

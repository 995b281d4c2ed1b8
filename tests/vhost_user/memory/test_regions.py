"""Guest memory: regions, their translation and removal, the dirty log, and the IOMMU's translations."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fds import OwnedFd
from vhost_user.memory.dirty_log import DirtyLog, DirtyLogError
from vhost_user.memory.iotlb import MAX_ENTRIES, Access, Iotlb
from vhost_user.memory.mapping import Mapping, MappingError, map_shared
from vhost_user.memory.regions import (
    BadAddressError,
    BadRegionError,
    GuestMemory,
    IotlbMissError,
    Region,
    guest_address_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
A = Region(0x10_0000, 4 * PAGE, 0x7F00_0000_0000)
B = Region(0x10_4000, 2 * PAGE, 0x7E00_0000_0000)
"""Behind A for the guest, elsewhere for the front-end."""
C = Region(0x20_0000, PAGE, 0x7F00_0000_8000)


def file_of(size: int) -> OwnedFd:
    fd = OwnedFd(os.memfd_create("guest", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    return fd


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()
    gc.collect()  # errors that were caught refer to views


# Regions


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


# The dirty log


def log_of(size: int) -> tuple[DirtyLog, OwnedFd]:
    fd = file_of(size)
    return DirtyLog(fd.dup(), size, 0), fd


def pages_in(fd: OwnedFd, offset: int = 0) -> set[int]:
    data = os.pread(fd.fileno(), 1 << 16, offset)
    return {8 * place + bit for place, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


@given(writes=st.lists(st.tuples(st.integers(0, 60 * PAGE), st.integers(0, 3 * PAGE)), max_size=6))
def test_rule_19_pages_of_4096_bytes(writes: list[tuple[int, int]]) -> None:
    log, fd = log_of(8)
    for address, length in writes:
        log.mark(address, length)
    assert pages_in(fd) == {
        page
        for address, length in writes
        if length
        for page in range(address >> 12, (address + length + 4095) >> 12)
    }
    fd.close()


def test_rule_19_the_log_begins_at_its_offset() -> None:
    fd = file_of(2 * PAGE)
    log = DirtyLog(fd.dup(), 100, PAGE + 8)
    log.mark(PAGE, 1)
    assert pages_in(fd, PAGE + 8) == {1}
    fd.close()


@pytest.mark.parametrize(("address", "length"), [(64 * PAGE, 1), (63 * PAGE, PAGE + 1), (1 << 60, 1)])
def test_rule_19_nothing_is_written_beyond_the_log(address: int, length: int) -> None:
    fd = file_of(PAGE)
    log = DirtyLog(fd.dup(), 8, 0)
    with pytest.raises(DirtyLogError, match="are outside the dirty log of 8 bytes"):
        log.mark(address, length)
    assert pages_in(fd) == set()
    fd.close()
    del log
    gc.collect()


def test_rule_19_data_is_logged_by_guest_address(memory: GuestMemory) -> None:
    """Also where the region has gone before the request was completed."""
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    views = [*memory.translate(A.guest_address + PAGE - 1, 2, write=True)]
    views += memory.translate(C.guest_address, 1, write=True)
    memory.set_table([])
    memory.mark_written(views)  # not logged: VHOST_F_LOG_ALL is off
    memory.log, fd = log_of(1 << 10)
    memory.mark_written(views)
    assert pages_in(fd) == {A.guest_address // PAGE, A.guest_address // PAGE + 1, C.guest_address // PAGE}
    memory.log = None
    fd.close()


def test_log_larger_than_its_file() -> None:
    fd = file_of(PAGE)
    with pytest.raises(MappingError, match="8192 bytes at 0x0 reach past the end of a file of 4096"):
        DirtyLog(fd, 2 * PAGE, 0)
    assert fd.closed


# The IOMMU


IOVA = 0xF_0000


@pytest.fixture
def iommu(memory: GuestMemory) -> GuestMemory:
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    memory.use_iotlb(True)
    return memory


def test_rule_15_addresses_are_virtual_ones_with_an_iommu(iommu: GuestMemory) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address + PAGE, 3)
    (view,) = iommu.translate(IOVA + 5, 4, write=True)
    view[:] = b"data"
    assert guest_address_of(view) == A.guest_address + PAGE + 5
    assert bytes(iommu.ring_part(IOVA, PAGE)[5:9]) == b"data", "a ring's too"


def test_rule_15_ring_addresses_are_user_addresses_without_an_iommu(memory: GuestMemory) -> None:
    memory.add(A, file_of(A.size))
    memory.translate(A.guest_address + 7, 1, write=True)[0][0] = 1
    assert bytes(memory.ring_part(A.user_address + 7, 1)) == b"\1"
    with pytest.raises(BadAddressError):
        memory.ring_part(A.guest_address, 1)


@pytest.mark.parametrize(("write", "access"), [(False, Access.READ), (True, Access.WRITE)])
def test_iotlb_miss_says_what_to_ask_for(iommu: GuestMemory, write: bool, access: Access) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    with pytest.raises(IotlbMissError, match=f"nothing at 0xf1000 for {access.name}") as caught:
        iommu.translate(IOVA + 10, PAGE, write=write)
    assert (caught.value.iova, caught.value.access) == (IOVA + PAGE, access)


@pytest.mark.parametrize(("permission", "write"), [(Access.READ, True), (Access.WRITE, False)])
def test_iotlb_permissions(iommu: GuestMemory, permission: Access, write: bool) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address, permission)
    assert len(iommu.translate(IOVA, 1, write=not write)) == 1
    with pytest.raises(IotlbMissError):
        iommu.translate(IOVA, 1, write=write)


def test_iotlb_neighbours_are_one_view(iommu: GuestMemory) -> None:
    for page in (2, 0, 3, 1):
        iommu.update_iotlb(IOVA + page * PAGE, PAGE, A.user_address + page * PAGE, 3)
    assert [len(view) for view in iommu.translate(IOVA + 1, 4 * PAGE - 1, write=True)] == [4 * PAGE - 1]


def test_no_memory_at_all_names_what_to_give_qemu() -> None:
    with pytest.raises(BadAddressError, match=r"shared no memory at all; give QEMU -object .*share=on"):
        GuestMemory().ring_part(0x1000, 16)


def test_iotlb_ring_in_pieces_is_mapped_in_one(iommu: GuestMemory) -> None:
    """The pages of a ring of 1024 entries, as Linux has them behind an IOMMU."""
    places = [A.user_address + PAGE, C.user_address, A.user_address]
    for number, place in enumerate(places):
        iommu.update_iotlb(IOVA + number * PAGE, PAGE, place, 3)
    ring = iommu.ring_part(IOVA + 16, 3 * PAGE - 32)
    pieces = iommu.translate(IOVA + 16, 3 * PAGE - 32, write=True)
    assert len(pieces) == 3
    at = 0
    for number, piece in enumerate(pieces):
        piece[0], piece[-1] = 2 * number + 1, 2 * number + 2
        assert (ring[at], ring[at + len(piece) - 1]) == (2 * number + 1, 2 * number + 2)
        ring[at] = 77
        assert piece[0] == 77
        at += len(piece)
    assert iommu.ring_part(IOVA + 16, 3 * PAGE - 32) is ring, "as long as somebody has it"


def test_iotlb_ring_in_pieces_outlives_its_region_and_is_unmapped_then(iommu: GuestMemory) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    iommu.update_iotlb(IOVA + PAGE, PAGE, C.user_address, 3)
    before = _maps()
    ring = iommu.ring_part(IOVA, 2 * PAGE)
    ring[0] = ring[-1] = 5
    assert _maps() == before + 2
    iommu.close()
    assert (ring[0], ring[-1]) == (5, 5)
    assert _maps() == 2
    del ring
    assert _maps() == 0


def _maps() -> int:
    """Return how many mappings of files there are that have no name."""
    return Path("/proc/self/maps").read_text().count("/memfd:")


def test_iotlb_ring_whose_pieces_are_no_pages(iommu: GuestMemory) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    iommu.update_iotlb(IOVA + PAGE, PAGE, C.user_address + 16, 3)
    with pytest.raises(BadAddressError, match="are not in one piece"):
        iommu.ring_part(IOVA, 2 * PAGE - 16)


def test_features_that_are_set_again_begin_with_an_empty_iotlb(iommu: GuestMemory) -> None:
    """A driver behind firmware has an address space of its own, and QEMU invalidates nothing of the other."""
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    generation = iommu.generation
    iommu.use_iotlb(True)
    assert iommu.generation != generation
    with pytest.raises(IotlbMissError):
        iommu.translate(IOVA, 1, write=True)


def test_iotlb_entry_that_leads_nowhere(iommu: GuestMemory) -> None:
    iommu.update_iotlb(IOVA, PAGE, 0x1000, 3)
    with pytest.raises(BadAddressError, match="no memory region holds user address 0x1000") as caught:
        iommu.translate(IOVA, 1, write=False)
    assert not isinstance(caught.value, IotlbMissError), "asking again would not help"


def test_iotlb_invalidation_reaches_running_rings(iommu: GuestMemory) -> None:
    before = iommu.generation
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    assert iommu.generation == before, "what was known is where it was"
    iommu.invalidate_iotlb(IOVA + PAGE, PAGE)
    assert iommu.generation == before
    iommu.invalidate_iotlb(IOVA, PAGE)
    assert iommu.generation != before
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    before = iommu.generation
    iommu.update_iotlb(IOVA, PAGE, A.user_address + PAGE, 3)
    assert iommu.generation != before, "it is elsewhere now"


def test_iotlb_goes_with_the_feature(iommu: GuestMemory) -> None:
    iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)
    iommu.use_iotlb(False)
    assert len(iommu.translate(A.guest_address, 1, write=True)) == 1
    with pytest.raises(BadRegionError, match="ACCESS_PLATFORM was not negotiated"):
        iommu.update_iotlb(IOVA, PAGE, A.user_address, 3)


@pytest.mark.parametrize(
    ("iova", "size", "access"), [(0, 0, 3), ((1 << 64) - 1, 2, 3), (0, PAGE, 0), (0, 1, 4)]
)
def test_iotlb_update_that_cannot_be(iommu: GuestMemory, iova: int, size: int, access: int) -> None:
    with pytest.raises(BadRegionError, match="no IOTLB entry can be"):
        iommu.update_iotlb(iova, size, A.user_address, access)


RUN = st.tuples(st.integers(0, 15), st.integers(1, 6))


@given(
    steps=st.lists(
        st.tuples(st.booleans(), RUN, st.integers(0, 3), st.sampled_from([Access.READ, Access(3)])),
        max_size=20,
    )
)
def test_iotlb_is_a_table_of_addresses(steps: list[tuple[bool, tuple[int, int], int, Access]]) -> None:
    """The model is a dict: address to user address and permission."""
    iotlb, model = Iotlb(), {}
    for update, (start, size), shift, access in steps:
        run = range(start, start + size)
        knew = any(address in model for address in run)
        if update:
            assert iotlb.update(start, size, 100 * shift + start, access) == knew
            model.update({address: (100 * shift + address, access) for address in run})
        else:
            assert iotlb.invalidate(start, size) == knew
            for address in run:
                model.pop(address, None)
    for address in range(24):
        for access in (Access.READ, Access.WRITE):
            entry = iotlb.find(address, access)
            user, permitted = model.get(address, (0, Access(0)))
            assert (entry is not None) == (access in permitted)
            assert entry is None or entry.user(address) == user


def test_iotlb_does_not_grow_without_end() -> None:
    iotlb = Iotlb()
    for page in range(MAX_ENTRIES):
        assert not iotlb.update(2 * page, 1, 0, Access.READ)
    assert iotlb.update(1, 1, 0, Access.READ), "everything is forgotten, and asked for again"
    assert len(iotlb) == 1

"""The IOTLB: addresses that the IOMMU translates, misses, rings in pieces, invalidation."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost_user.memory.layout import PAGE, A, C, file_of
from vhost_user.memory.iotlb import MAX_ENTRIES, Access, Iotlb
from vhost_user.memory.regions import (
    BadAddressError,
    BadRegionError,
    GuestMemory,
    IotlbMissError,
    guest_address_of,
)

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

"""Ids are not allocated while a client is connected that was told of their disconnect."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.ivshmem.ids import IdAllocator
from protocol.ivshmem.messages import MAX_ID


def test_first_ids_count_up_from_0() -> None:
    ids = IdAllocator()
    assert [ids.allocate(0) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_there_are_65536_ids() -> None:
    ids = IdAllocator()
    assert [ids.allocate(0) for _ in range(MAX_ID + 1)] == list(range(MAX_ID + 1))
    assert ids.allocate(0) is None


def test_id_is_free_again_once_those_who_saw_it_leave_are_gone() -> None:
    ids = IdAllocator()
    assert [ids.allocate(0), ids.allocate(1)] == [0, 1]
    ids.release(1, now=5)
    assert ids.allocate(oldest_join=4) == 2
    assert ids.allocate(oldest_join=6) == 1


def test_lowest_free_id_comes_first() -> None:
    ids = IdAllocator()
    for _ in range(5):
        ids.allocate(0)
    for now, id_ in enumerate([3, 1, 4, 0, 2]):
        ids.release(id_, now)
    assert [ids.allocate(None) for _ in range(6)] == [0, 1, 2, 3, 4, 5]


def test_exhaustion_ends_when_the_witnesses_leave() -> None:
    ids = IdAllocator()
    for id_ in range(MAX_ID + 1):
        ids.allocate(0)
        ids.release(id_, now=id_ + 1)
    assert ids.allocate(0) is None
    assert ids.allocate(None) == 0


def test_reserved_ids_are_not_given_until_they_are_freed() -> None:
    ids = IdAllocator()
    ids.reserve(3)
    assert (ids.reserved, ids.available(None)) == (3, MAX_ID - 2)
    assert [ids.allocate(None), ids.allocate(0)] == [3, 4]
    ids.reserve(9)  # too late
    assert (ids.reserved, ids.allocate(0)) == (3, 5)
    ids.reserve(1)
    assert (ids.reserved, ids.available(0)) == (1, MAX_ID - 3)
    assert [ids.allocate(0) for _ in range(3)] == [1, 2, 6]
    ids.reserve(0)
    assert [ids.allocate(0) for _ in range(2)] == [0, 7]


@given(st.integers(0, 12), st.lists(st.one_of(st.just("join"), st.just("leave"), st.integers(0, 12))))
def test_no_client_gets_an_id_while_it_is_reserved(first: int, steps: list[str | int]) -> None:
    """A number in `steps` is how many ids are reserved still, where it is less than before."""
    ids = IdAllocator()
    ids.reserve(first)
    reserved = first
    joined: set[int] = set()
    for now, step in enumerate(steps):
        if isinstance(step, int):
            reserved = min(reserved, step)
            ids.reserve(reserved)
        elif step == "leave" and joined:
            ids.release(joined.pop(), now)
        elif step == "join":
            new = ids.allocate(None)  # nobody remembers who left
            assert new is not None
            assert new >= reserved
            assert new not in joined
            joined.add(new)
        assert ids.reserved == reserved
        assert ids.available(None) == MAX_ID + 1 - reserved - len(joined)


def test_all_ids_may_be_reserved() -> None:
    ids = IdAllocator()
    ids.reserve(MAX_ID + 2)
    assert (ids.reserved, ids.available(None), ids.allocate(None)) == (MAX_ID + 1, 0, None)


@given(st.lists(st.one_of(st.just("join"), st.integers(0, 20)), max_size=60))
def test_new_client_gets_the_lowest_id_that_nobody_saw_leave(steps: list[str | int]) -> None:
    """A number in `steps` is which of the clients leaves, the oldest first."""
    ids = IdAllocator()
    joined: dict[int, int] = {}  # ids of the clients -> when, in order of time
    seen_leaving: dict[int, set[int]] = {}  # ids of the clients -> ids they saw leave
    for now, step in enumerate(steps):
        if isinstance(step, int):
            if step < len(joined):
                gone = list(joined)[step]
                del joined[gone], seen_leaving[gone]
                for seen in seen_leaving.values():
                    seen.add(gone)
                ids.release(gone, now)
        else:
            taken = set(joined).union(*seen_leaving.values())
            assert ids.available(min(joined.values(), default=None)) == MAX_ID + 1 - len(taken)
            lowest = next(id_ for id_ in range(len(steps)) if id_ not in taken)
            assert ids.allocate(min(joined.values(), default=None)) == lowest
            joined[lowest], seen_leaving[lowest] = now, set()

"""The device's registers, in the guest's view."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.ivshmem.messages import MAX_ID
from protocol.ivshmem.registers import REGISTER_SIZE, REGISTERS_SIZE, Register, doorbell, split_doorbell


@given(st.integers(0, MAX_ID), st.integers(0, 0xFFFF))
def test_doorbell_holds_peer_and_vector(peer: int, vector: int) -> None:
    word = doorbell(peer, vector)
    assert 0 <= word < 2**32
    assert split_doorbell(word) == (peer, vector)


@given(st.integers(0, 2**32 - 1))
def test_any_word_names_a_peer_and_a_vector(word: int) -> None:
    assert doorbell(*split_doorbell(word)) == word


def test_doorbell_has_the_peer_in_its_upper_half() -> None:
    assert doorbell(3, 1) == 0x0003_0001


@pytest.mark.parametrize(("peer", "vector"), [(-1, 0), (MAX_ID + 1, 0), (0, -1), (0, 0x10000)])
def test_doorbell_refuses_what_does_not_fit(peer: int, vector: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"peer {peer}, vector {vector}"):
        doorbell(peer, vector)


def test_registers_do_not_overlap_and_lie_in_the_bar() -> None:
    offsets = sorted(Register)
    assert all(second - first >= REGISTER_SIZE for first, second in itertools.pairwise(offsets))
    assert offsets[-1] + REGISTER_SIZE <= REGISTERS_SIZE

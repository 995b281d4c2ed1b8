"""Chains in plain memory, as a ring makes them of the guest's."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vhost_user.ring import Chain
from vhost_user.ring.chain import NOT_COMPLETED, Unattended

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.ring import Completions

_Chain = TypeVar("_Chain", bound=Chain)


def filled(
    chain: _Chain,
    readable: Iterable[memoryview],
    writable: Iterable[memoryview],
    completions: Completions | None = None,
    number: int = 0,
) -> _Chain:
    """Fill in a new chain of these buffers, which tells `completions` of its completion; return it."""
    chain._completions = Unattended() if completions is None else completions
    chain._readable = chain._writable = None
    chain.readable_buffers, chain.writable_buffers = list(readable), list(writable)
    chain.readable_length = sum(map(len, chain.readable_buffers))
    chain.writable_length = sum(map(len, chain.writable_buffers))
    chain.head, chain.number = 0, number
    chain.written, chain.is_put_back = NOT_COMPLETED, False
    return chain


def completed(chain: Chain, written: int) -> Chain:
    """Return the chain as a ring is given it, with so many bytes written."""
    chain.written = written
    return chain

"""Requests with a header that a device declares: shorter ones never reach it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from protocol.program.warnings import OnceLogger
from protocol.words import plural
from vhost_user.buffers import ChainError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from vhost_user.buffers import Layout
    from vhost_user.ring import Batch, Chain

_log = logging.getLogger("vhost_user")


class ChainSource(Protocol):
    """A queue, as far as its requests need it."""

    index: int
    """The queue's number, for the log."""

    async def __anext__(self) -> Chain:
        """Return the next chain. Raises StopAsyncIteration once the queue is to stop."""

    def batches(self, limit: int = ...) -> AsyncIterator[Batch]:
        """Iterate over batches of 1 to `limit` chains."""


class Requests:
    """The chains of a queue, each with its header; `Virtqueue.requests()` makes one."""

    def __init__(
        self, queue: ChainSource, header: Layout, room: int, refusal: bytes | Callable[[Chain], bytes]
    ) -> None:
        self._queue = queue
        self._header = header
        self._room = room
        self._refusal = refusal
        self._once = OnceLogger(_log)

    def __aiter__(self) -> AsyncIterator[tuple[Chain, Any]]:
        return self

    async def __anext__(self) -> tuple[Chain, Any]:
        """Wait for the next request that is one."""
        while True:
            chain = await self._queue.__anext__()
            for request in self._checked([chain]):
                return request

    async def batches(self, limit: int | None = None) -> AsyncIterator[list[tuple[Chain, Any]]]:
        """Iterate over lists of 1 to `limit` requests, as `Virtqueue.batches()` does over chains."""
        async for batch in self._queue.batches() if limit is None else self._queue.batches(limit):
            if requests := list(self._checked(batch)):
                yield requests

    def _checked(self, chains: Iterable[Chain]) -> Iterable[tuple[Chain, Any]]:
        """Yield the requests among `chains` with their headers, and answer the others."""
        for chain in chains:
            try:
                header = chain.readable.unpack(self._header)
                if chain.writable.length < self._room:
                    raise ChainError(
                        f"room for {plural(chain.writable.length, 'byte')}, where {self._room} are due"
                    )
            except ChainError as error:
                self._refuse(chain, str(error))
            else:
                yield chain, header

    def _refuse(self, chain: Chain, reason: str) -> None:
        self._once.warning(f"queue {self._queue.index}: a request is refused: {reason}")
        answer = self._refusal if isinstance(self._refusal, bytes) else self._refusal(chain)
        chain.writable.write(answer)
        chain.complete()

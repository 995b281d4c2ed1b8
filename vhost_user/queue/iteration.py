"""Iteration over a queue's batches, and blocks that its stop cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from vhost_user.ring import Batch


class UntilStop:
    """A cancel scope that its queue knows while it is entered: `Virtqueue.until_stop()` returns one."""

    def __init__(self, scopes: set[trio.CancelScope], stopping: bool) -> None:
        self._scopes = scopes
        self._scope = trio.CancelScope()
        if stopping:
            self._scope.cancel()

    def __enter__(self) -> trio.CancelScope:
        self._scopes.add(self._scope)
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._scopes.discard(self._scope)
        return bool(self._scope.__exit__(kind, error, trace))


class Batches:
    """An iterator over batches, which an empty one ends: `Virtqueue.batches()` returns one."""

    def __init__(self, next_batch: Callable[[], Awaitable[Batch]]) -> None:
        self._next_batch = next_batch

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        batch = await self._next_batch()
        if not batch:
            raise StopAsyncIteration
        return batch

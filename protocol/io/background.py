"""background(): tasks beside a block, whose errors come out of the block as they are."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias

    Task: TypeAlias = Callable[[], Awaitable[None]]


@asynccontextmanager
async def background() -> AsyncIterator[Callable[[Task], None]]:
    """Give the block a function that starts tasks. What one raises cancels the block, and comes out of it."""
    failure: BaseException | None = None
    raised: BaseException | None = None

    async def run(task: Task) -> None:
        nonlocal failure
        try:
            await task()
        except Exception as error:
            failure = failure or error
            block.cancel()

    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.CancelScope() as block:
                    yield lambda task: nursery.start_soon(run, task)
            except BaseException as error:
                raised = failure or error  # after a failure, what the block raises comes of it
            # Shielded, the nursery ends without a Cancelled of its own that would replace `raised`.
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised
        if failure is not None:
            raise failure
    finally:
        del raised, failure  # they refer to this frame

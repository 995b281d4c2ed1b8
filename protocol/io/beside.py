"""A task beside a block, whose errors are as plain as the block's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def beside(background: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `background` while the block runs: one that fails cancels the block, one that ends does not.

    What either of them raises comes out without a group; the block's, where both do.
    """
    raised: BaseException | None = None
    failure: Exception | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await background()
        except Exception as error:
            failure = error
            block.cancel()

    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.CancelScope() as block:
                    nursery.start_soon(run)
                    yield
            except BaseException as error:
                raised = error
            # Shielded, the nursery ends without a Cancelled of its own that would replace `raised`.
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised
        if failure is not None:
            raise failure
    finally:
        del raised, failure  # they refer to this frame

"""Tasks beside a block, whose errors come out of it as they are, without a group."""

# How it works: the block runs in a cancel scope inside the nursery of the tasks. A task that fails notes its
# error and cancels the scope; then the block's own exceptions, Cancelled among them, are noted, the nursery
# is cancelled, and when all tasks have ended the error that counts is raised, outside of the nursery, which
# would put it into a group. No task outlives the block.

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, overload

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias

    Task: TypeAlias = Callable[[], Awaitable[object]]


@asynccontextmanager
async def background(*, block_first: bool = False) -> AsyncIterator[Callable[[Task], None]]:
    """Give the block a function that starts tasks. One that fails cancels the block, one that ends does not.

    What a task raises comes out of the block. Where the block then raises something too, that comes of it,
    and is dropped; with `block_first` it is the one that comes out.
    """
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
                raised = error if block_first else failure or error
            # Shielded, the nursery ends without a Cancelled of its own that would replace `raised`.
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised
        if failure is not None:
            raise failure
    finally:
        del raised, failure  # they refer to this frame


@asynccontextmanager
async def beside(task: Task) -> AsyncIterator[None]:
    """Run `task` while the block runs. Where both fail, it is the block's error that comes out."""
    async with background(block_first=True) as start:
        start(task)
        yield


@overload
def unwrap_group(error: Exception) -> Exception: ...
@overload
def unwrap_group(error: BaseException) -> BaseException: ...
def unwrap_group(error: BaseException) -> BaseException:
    """Return the exception in a group of one, at any depth; `error` itself where it is not such a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def only_exit(group: BaseExceptionGroup[BaseException]) -> SystemExit | None:
    """Return a SystemExit of a group that has nothing else, however deep; None for any other group."""
    exits, others = group.split(SystemExit)
    found: BaseException | None = exits if others is None else None
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, SystemExit) else None

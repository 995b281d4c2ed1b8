"""A task beside a block: whoever fails ends both, and is heard as it is."""

from __future__ import annotations

import pytest
import trio

from protocol.io.background import beside


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise BrokenPipeError("beside")


async def end() -> None:
    await trio.lowlevel.checkpoint()


async def test_failure_beside_cancels_the_block_and_comes_out_alone() -> None:
    with pytest.raises(BrokenPipeError, match="beside"):
        async with beside(fail):
            await trio.sleep_forever()


async def test_end_beside_leaves_the_block_alone() -> None:
    async with beside(end):
        await trio.testing.wait_all_tasks_blocked()
        await end()


async def test_end_of_the_block_ends_what_is_beside() -> None:
    with trio.fail_after(60):
        async with beside(trio.sleep_forever):
            pass


async def fail_differently() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise KeyError("block")


async def test_error_of_the_block_comes_out_alone_and_first() -> None:
    with pytest.raises(KeyError, match="block"):
        async with beside(fail):
            await fail_differently()


async def test_cancellation_from_outside_is_no_error() -> None:
    with trio.CancelScope() as scope:
        async with beside(trio.sleep_forever):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught

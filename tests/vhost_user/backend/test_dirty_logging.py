"""The log of writes for a live migration, as a front-end passes it."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.fds import OwnedFd
from protocol.io import EventFd
from protocol.vhost_user import (
    SetLogBase,
    SetLogFd,
    VringAddressFlag,
)
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo, Gate
from tests.vhost_user.raw_frontend import (
    GUEST,
    MEMORY_SIZE,
    Frontend,
    attached,
    until,
    works,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


PAGE = 4096


class Log:
    """A dirty log for the first pages of guest memory, at guest address 0."""

    def __init__(self) -> None:
        self.size = -(-(GUEST + MEMORY_SIZE) // PAGE // 8)
        self.fd = OwnedFd(os.memfd_create("test-log", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), self.size)
        self._view = memoryview(mmap.mmap(self.fd.fileno(), self.size))

    def take(self) -> set[int]:
        """Return the pages of the guest's memory that are marked, counted from its start; clear them."""
        first = GUEST // PAGE // 8
        marked = {
            8 * byte + bit
            for byte, bits in enumerate(self._view[first:])
            for bit in range(8)
            if bits >> bit & 1
        }
        self._view[first:] = bytes(len(self._view) - first)
        return marked

    def close(self) -> None:
        self.fd.close()
        self._view = memoryview(b"")


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.close()


def pages(frontend: Frontend, address: int) -> int:
    return (address - GUEST) // PAGE


async def test_rule_19_writes_are_logged_while_log_all_is_on(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        frontend.memory.allocate(2 * PAGE)
        assert await works(queue)
        assert log.take() == set()

        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        (out,) = queue.submit([b"ping"], [8])
        await queue.wait()
        assert log.take() == {pages(frontend, out.address)}

        await frontend.set_features(frontend.features.without(Feature.LOG_ALL))
        assert await works(queue)
        assert log.take() == set()
        assert await works(queue)


async def test_rule_19_used_ring_is_logged_with_its_flag_at_its_log_address(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        await frontend.request(queue.address(VringAddressFlag.LOG, GUEST + 300 * PAGE))
        (out,) = queue.submit([b"ping"], [8])
        await queue.wait()
        assert log.take() == {pages(frontend, out.address), 300}
        await frontend.request(queue.address())
        assert await works(queue)
        assert 300 not in log.take()


@pytest.mark.parametrize(
    "features",
    [Feature.VERSION_1, Feature.VERSION_1 | Feature.RING_PACKED],
    ids=["split", "packed"],
)
async def test_word_that_tells_the_driver_not_to_kick_is_logged(log: Log, features: Feature) -> None:
    device = Gate()
    async with attached(device) as frontend:
        queue = await frontend.start(features)
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        await frontend.request(queue.address(VringAddressFlag.LOG, GUEST + 300 * PAGE))
        assert log.take() == set()
        queue.submit([b"ping"], [8])
        await until(lambda: device.held)
        assert 300 in log.take()
        device.open.set()
        await queue.wait()


async def test_eventfd_tells_that_the_log_has_changed(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        with EventFd.create() as changed:
            await frontend.request(SetLogFd(fds=(changed.dup(),)))
            await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
            assert await works(queue)
            assert changed.take() == 0
            await frontend.set_features(frontend.features | Feature.LOG_ALL)
            assert await works(queue)
            assert changed.take() == 1


async def test_descriptor_for_the_log_that_is_no_eventfd_is_told_and_done_without(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogFd(fds=(OwnedFd(os.open("/dev/zero", os.O_RDONLY)),)))
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        for _ in range(2):
            assert await works(queue)
    assert caplog.text.count("the descriptor of SET_LOG_FD is not an eventfd: Bad file descriptor") == 1


async def test_log_that_is_too_small_breaks_the_queue(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(PAGE, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        queue.submit([b"ping"], [8])
        with trio.fail_after(60):
            await queue.err.wait()
        assert "outside the dirty log" in caplog.text

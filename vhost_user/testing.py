"""Tests of a device without QEMU: `driving()`, and fixtures for pytest with pytest-trio.

::

    pytest_plugins = ["vhost_user.testing"]  # in conftest.py

    @pytest.fixture
    def device():
        return Echo()

    async def test_echo(driver_queue):
        assert await driver_queue.request(b"hello", 5) == b"hello"

docs/testing-a-device.md tells more.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from pytest_trio import trio_fixture  # type: ignore[import-untyped]

from protocol.io import FdStream
from protocol.io.background import background, unwrap_group
from protocol.virtio.features import Feature
from vhost_user.backend import serve_connection
from vhost_user.frontend import MEMORY_SIZE, PATIENCE_SECONDS, connect

__all__ = ["device", "driver_features", "driver_queue", "driving", "frontend"]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protocol.vhost_user import ProtocolFeature
    from vhost_user.device import VirtioDevice
    from vhost_user.frontend import DriverQueue, Frontend


@asynccontextmanager
async def driving(
    device: VirtioDevice,
    features: int | None = None,
    *,
    plus: Feature = Feature.NONE,
    protocol: ProtocolFeature | None = None,
    memory_size: int = MEMORY_SIZE,
    patience: float = PATIENCE_SECONDS,
) -> AsyncIterator[Frontend]:
    """Serve `device` in this process, for the length of an `async with` block that gets its front-end.

    `features`, `plus` and `protocol` are negotiated as by `Frontend.negotiate()`. Nothing may take
    longer than `patience` seconds. What the device raises comes out of the block, which is cancelled.
    """
    ours, theirs = (FdStream(end) for end in socket.socketpair())

    async def serve() -> None:
        try:
            await serve_connection(device, theirs)
        except ExceptionGroup as group:
            raise unwrap_group(group) from None

    async with background() as start:
        start(serve)
        async with connect(stream=ours, memory_size=memory_size, patience=patience) as front:
            await front.negotiate(features, plus=plus, protocol=protocol)
            yield front


@pytest.fixture
def device() -> VirtioDevice:
    """The device that is tested: define this fixture yourself."""
    pytest.fail("define a fixture `device` that returns the device to be tested", pytrace=False)


@pytest.fixture
def driver_features() -> Feature:
    """Features that the driver turns on beside those of `Frontend.negotiate()`; override it for more."""
    return Feature.NONE


@trio_fixture  # type: ignore[untyped-decorator]
async def frontend(device: VirtioDevice, driver_features: Feature) -> AsyncIterator[Frontend]:
    """A front-end of `device` that has negotiated with it."""
    async with driving(device, plus=driver_features) as front:
        yield front


@trio_fixture  # type: ignore[untyped-decorator]
async def driver_queue(frontend: Frontend) -> DriverQueue:
    """The driver's side of the device's queue 0."""
    return await frontend.start_queue()

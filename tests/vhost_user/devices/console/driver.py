"""A driver of a console device, in the test's own process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.virtio.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    NO_PORT,
    ConsoleFeature,
    ControlEvent,
    ControlMessage,
    receiveq,
    transmitq,
)
from protocol.virtio.features import Feature
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, attached

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.vhost_user.raw_frontend import Frontend, Queue
    from vhost_user.devices.console.device import Console

CONTROL_ROOM = 64
SECONDS = 60
MULTIPORT = Feature(DEFAULT_FEATURES | ConsoleFeature.MULTIPORT | ConsoleFeature.SIZE)


class Driver:
    """Queues of a console device. Control messages that come are kept in words."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.queues: dict[int, Queue] = {}

    async def start(self, *indices: int) -> None:
        """Start queues."""
        for index in indices:
            queue = self.queues[index] = self.frontend.queue(index, 64)
            await queue.start()

    async def start_port(self, port: int) -> None:
        """Start the two queues of a port."""
        await self.start(receiveq(port), transmitq(port))

    async def say(self, event: ControlEvent, port: int = 0, value: int = 1) -> None:
        """Send a control message."""
        await self.say_bytes(ControlMessage(port, event, value).encode())

    async def say_bytes(self, data: bytes) -> None:
        """Send what may be a control message, in a buffer which comes back empty."""
        assert await self.queues[CONTROL_TRANSMITQ].exchange([data]) == []

    async def hear(self, count: int = 1) -> list[str]:
        """Return the next control messages, in words."""
        heard = []
        for _ in range(count):
            (data,) = await self.queues[CONTROL_RECEIVEQ].exchange([], [CONTROL_ROOM])
            message = ControlMessage.decode(data)
            heard.append(f"{message} {message.extra.hex()}".strip())
        return heard

    async def begin(self) -> None:
        """Start the control queues, and say that the driver is ready."""
        await self.start(CONTROL_RECEIVEQ, CONTROL_TRANSMITQ)
        await self.say(ControlEvent.DEVICE_READY, NO_PORT)

    async def set_up(self, port: int, messages: int) -> list[str]:
        """Have the port added, start its queues, say it is ready; return so many messages about it."""
        assert await self.hear() == [f"DEVICE_ADD port={port} value=0"]
        await self.start_port(port)
        await self.say(ControlEvent.PORT_READY, port)
        return await self.hear(messages)

    async def open(self, port: int, *, is_open: bool = True) -> None:
        """Have the guest open a port, or close it."""
        await self.say(ControlEvent.PORT_OPEN, port, int(is_open))

    async def send(self, port: int, data: bytes) -> None:
        """Send to the host, and wait until that was taken."""
        assert await self.queues[transmitq(port)].exchange([data]) == []

    async def receive(self, port: int, size: int = 4096) -> bytes:
        """Wait for what comes from the host."""
        return b"".join(await self.queues[receiveq(port)].exchange([], [size]))


@asynccontextmanager
async def driving(console: Console, features: Feature = MULTIPORT) -> AsyncIterator[Driver]:
    """Serve `console`, and its host sides, to a driver that has negotiated; close it in the end."""
    with console:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.run_host)
            async with attached(console) as frontend:
                await frontend.negotiate(features)
                await frontend.share_memory()
                yield Driver(frontend)
            nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another task, or the kernel, does."""
    with trio.fail_after(SECONDS):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.005)

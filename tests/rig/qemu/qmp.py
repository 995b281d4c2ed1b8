"""A QMP client: it plugs devices into a running QEMU and reads its state."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from tests.rig.qemu.lines import ANSWER_SECONDS, LineChannel

if TYPE_CHECKING:
    from typing import Self


class QmpError(Exception):
    """QEMU refused a QMP command; the text is QEMU's own."""


class Qmp:
    """A QMP session (QEMU, docs/interop/qmp-spec). Events are kept until `wait_event()` asks for them.

    Every method raises QemuGoneError when QEMU has ended.
    """

    def __init__(self, channel: LineChannel) -> None:
        self._channel = channel
        self._lock = trio.Lock()
        self._events: deque[dict[str, Any]] = deque()

    @classmethod
    async def negotiate(cls, channel: LineChannel) -> Self:
        """Take the greeting and leave the negotiation mode."""
        qmp = cls(channel)
        with trio.fail_after(ANSWER_SECONDS):
            await channel.receive()
        await qmp.execute("qmp_capabilities")
        return qmp

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run `command`; return its value. In argument names an underscore stands for a dash.

        Raises QmpError. Cancelled, the command is still answered first.
        """
        request = {
            "execute": command,
            "arguments": {name.replace("_", "-"): value for name, value in arguments.items()},
        }
        async with self._lock:
            with trio.fail_after(ANSWER_SECONDS, shield=True):
                await self._channel.send(json.dumps(request).encode())
                while "event" in (answer := json.loads(await self._channel.receive())):
                    self._events.append(answer)
        if "error" in answer:
            raise QmpError(answer["error"]["desc"])
        return answer["return"]

    async def wait_event(self, name: str, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Return the data of the next event called `name`; events before it are dropped.

        Raises trio.TooSlowError after `seconds`.
        """
        async with self._lock:
            with trio.fail_after(seconds):
                while True:
                    event = (
                        self._events.popleft() if self._events else json.loads(await self._channel.receive())
                    )
                    if event["event"] == name:
                        data: dict[str, Any] = event.get("data", {})
                        return data

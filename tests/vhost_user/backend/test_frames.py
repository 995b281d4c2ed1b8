"""How many functions of ours a request passes, from the bytes that complete it to its reply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.io import FdStream
from protocol.vhost_user import SetMemTable
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import GUEST, USER, Frontend, GuestMemory, attached

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    import pytest

    from protocol.fds import OwnedFd

MOST = 90
"""So that a reader, and a debugger, can follow SET_MEM_TABLE with two regions."""

ROOT = Path(__file__).parents[3]
OURS = tuple(str(ROOT / package) for package in ("protocol", "vhost_user"))


class Counter:
    """Counts calls of functions of ours, also coroutines that go on, from received bytes to a sent reply."""

    def __init__(self, frontend: Frontend, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self._is_on = False
        receive, send = FdStream.receive_nowait, FdStream.send

        def received(stream: FdStream, *sizes: int) -> tuple[bytes, list[OwnedFd]]:
            result = receive(stream, *sizes)
            if stream is not frontend._stream and result[0]:
                self.names.clear()  # the header of the request is not all of it
                self._is_on = True
            return result

        async def sent(stream: FdStream, *packet: Any) -> None:
            await send(stream, *packet)
            if stream is not frontend._stream:
                self._is_on = False

        patch.setattr(FdStream, "receive_nowait", received)
        patch.setattr(FdStream, "send", sent)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and self._is_on and frame.f_code.co_filename.startswith(OURS):
            self.names.append(frame.f_code.co_qualname)


async def test_memory_table_passes_few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        other = GuestMemory(1 << 20, GUEST + (1 << 30), USER + (1 << 30))
        memories = frontend.memory, other

        def table() -> SetMemTable:
            return SetMemTable(
                tuple(each.region for each in memories), fds=tuple(each.fd.dup() for each in memories)
            )

        await frontend.request(table())
        counter = Counter(frontend, monkeypatch)
        before = sys.getprofile()
        sys.setprofile(counter)
        try:
            await frontend.request(table())
        finally:
            sys.setprofile(before)
        other.close()
    assert counter.names[0] == "Responder.receive"
    assert "Ack.outcome" in counter.names
    assert len(counter.names) <= MOST, "\n".join(counter.names)

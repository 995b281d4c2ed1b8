"""A driver of a network card that is somebody else's, over the front-end library."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from protocol.virtio.net import HEADER, NetFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.frontend import DriverQueue, Frontend, Request

HERE, THERE = bytes.fromhex("525400aabbcc"), bytes.fromhex("525400ddeeff")
ROOM = 2048
"""Bytes of a buffer to receive into, where nothing else is said."""


def frames(count: int, *, seed: int = 0) -> list[bytes]:
    """Return frames of all sizes there are, each with a content of its own, by which `count` differ."""
    sizes = (60 + (number * 97 + seed) % (1514 - 60 + 1) for number in range(count))
    return [
        THERE + HERE + b"\x88\xb5" + bytes((at * 7 + number + seed) % 251 for at in range(size - 14))
        for number, size in enumerate(sizes)
    ]


class Card:
    """One pair of queues of a network card."""

    def __init__(self, rx: DriverQueue, tx: DriverQueue) -> None:
        self.rx = rx
        self.tx = tx

    @classmethod
    async def start(cls, front: Frontend, *, pair: int = 0, size: int = 256) -> Card:
        """Start the two queues."""
        return cls(
            await front.start_queue(2 * pair, size=size), await front.start_queue(2 * pair + 1, size=size)
        )

    async def get_back(
        self, sent: Sequence[bytes], *, room: int = ROOM, pieces: int = 1, together: int = 8
    ) -> list[bytes]:
        """Send frames to whoever sends them back; return what came, in its order.

        Each frame is sent in so many buffers beside its header, `together` of them at a time, and received
        into buffers of `room` bytes, as many as it takes (MRG_RXBUF).
        """
        back = []
        for at in range(0, len(sent), together):
            batch = sent[at : at + together]
            needed = sum(-(-(HEADER.size + len(frame)) // room) for frame in batch)
            waiting = deque(self.rx.submit(room, publish=False) for _ in range(needed))
            self.rx.publish()
            going = [self.tx.submit(bytes(HEADER.size), *_cut(each, pieces), publish=False) for each in batch]
            self.tx.publish()
            back += [await self._receive(waiting) for _ in batch]
            for request in going:
                await self.tx.wait(request)
            assert not waiting
        return back

    async def _receive(self, waiting: deque[Request]) -> bytes:
        data = await self.rx.wait(waiting.popleft())
        if NetFeature.MRG_RXBUF in NetFeature(self.rx.features):  # DPDK says nothing otherwise
            *_, buffers = HEADER.unpack_from(data)
            for _ in range(buffers - 1):
                data += await self.rx.wait(waiting.popleft())
        return data[HEADER.size :]


def _cut(frame: bytes, pieces: int) -> list[bytes]:
    step = -(-len(frame) // pieces)
    return [frame[at : at + step] for at in range(0, len(frame), step)]

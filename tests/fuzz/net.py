"""Any chains to a network device: frames that the guest sends, buffers to receive into, control commands.

The first byte says which of these the queue is for and what the driver turned on; the next ones are
the sizes of frames for the guest; the rest is what is in the guest's memory from address 0 on, where a
split ring is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from protocol.virtio.features import Feature
from protocol.virtio.net import (
    CONTROL_HEADER,
    HEADER,
    ControlClass,
    ControlStatus,
    NetFeature,
    RxCommand,
    build_mac_tables,
    header_size,
)
from tests.fuzz.guest import USER, GuardedGuest
from tests.fuzz.harness import DefectError
from tests.fuzz.ring_seeds import memory
from tests.fuzz.rings import parts_of
from vhost_user.buffers import copy
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.frames import Counters, Filter
from vhost_user.devices.net.ports.port import MAX_FRAME, NetPort
from vhost_user.devices.net.receiver import QueueReceiver
from vhost_user.devices.net.transmitter import QueueTransmitter
from vhost_user.ring import BrokenRingError, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhost_user.ring import Batch, Chain


KINDS = ("receive", "transmit", "control")
MERGES, LEGACY, FILTERS, READS = 4, 8, 16, 32
"""Bits of the first byte; READS: the port does not know how large frames are."""

SIZE = 16
FRAMES = 4
_CONTROL_FEATURES = NetFeature((1 << 24) - 1)

_guest = GuardedGuest()


class _Queue:
    """What stands for a Virtqueue: it completes at once, and checks how."""

    def __init__(self, ring: SplitRing, features: int) -> None:
        self.features = features
        self._given_back = 0
        self._ring = ring
        ring.completions = self
        self._taken = 0

    def take_now(self, limit: int = 64) -> Batch:
        try:
            chains = self._ring.pop(limit)
        except BrokenRingError:
            return []
        self._taken += len(chains)
        return chains

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        for chain, written in done:
            if chain.completed:
                raise DefectError("a chain was completed twice")
            chain.written = written
            self.completed(chain)

    def completed(self, chain: Chain) -> None:
        if not 0 <= chain.written <= chain.writable_length:
            raise DefectError(f"{chain.written} bytes are said to be written of {chain.writable_length}")
        note_written(chain)
        self._given_back += 1
        self._ring.push([chain])

    def recheck(self) -> None:
        pass

    def flush(self) -> None:
        pass

    @property
    def outstanding(self) -> int:
        return self._taken - self._given_back


class _Port(NetPort):
    """Looks at every byte that is sent."""

    queue_pairs = 2

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        frame = b"".join(buffers)
        if len(frame) != length or not self.header_size + 14 <= length <= MAX_FRAME:
            raise DefectError(f"{len(frame)} bytes are sent as a frame of {length}")
        return True


def note_written(chain: Chain) -> None:
    """Let whatever is in these buffers be there."""
    for view in chain.writable_buffers:
        _guest.written(view)


def one_input(data: bytes) -> None:
    """Fail unless every chain is given back once at most, with nothing written but its buffers."""
    flags = data[0] if data else 0
    sizes = [byte * 40 for byte in data[1 : 1 + FRAMES]]
    table, avail, used, end = parts_of("split", SIZE)
    _guest.begin(data[1 + FRAMES :], [(used, end - used)])
    features = int(Feature.INDIRECT_DESC)
    features |= 0 if flags & LEGACY else int(Feature.VERSION_1)
    features |= int(NetFeature.MRG_RXBUF) if flags & MERGES else 0
    config = RingConfig(SIZE, USER + table, USER + avail, USER + used, features)
    queue = _Queue(SplitRing(_guest.memory, config, 0), features)
    kind = KINDS[flags % 4 % len(KINDS)]
    if kind == "receive":
        _receive(queue, flags, sizes)
    else:
        _serve(queue, kind)
    _guest.check()


def _serve(queue: _Queue, kind: str) -> None:
    with Net(_Port()) as device:
        device.negotiated(Feature(queue.features | _CONTROL_FEATURES))
        given: Any = queue
        transmitter = QueueTransmitter(given, device.port, 1, Counters(), lambda: True, own=device._own)
        while chains := queue.take_now(4):
            if kind == "transmit":
                if transmitter._send(chains):
                    raise DefectError("frames are left that the port would have taken")
                transmitter.complete_late()
                continue
            for chain in chains:
                room = [*chain.writable_buffers]
                device._control.serve(chain)
                if room and room[0][0] not in list(ControlStatus):
                    raise DefectError(f"the answer to a command is {room[0][0]}")
        if queue.outstanding:
            raise DefectError(f"{queue.outstanding} chains are not given back")


def _receive(queue: _Queue, flags: int, sizes: Sequence[int]) -> None:
    counters, wanted = Counters(), Filter(b"\2\2\2\2\2\2")
    if flags & FILTERS:
        wanted.modes.discard(RxCommand.PROMISC)
        wanted.vlans = set()
    receiver = QueueReceiver(queue, wanted, counters)  # type: ignore[arg-type]
    for number, body in enumerate(sizes):
        frame = bytes([number + 1]) * (header_size(queue.features) + 14 + body)
        room = receiver.window() if flags & READS else receiver.room(len(frame))
        if room is not None:
            copy([memoryview(frame)], room, len(frame))
            receiver.fill(len(frame))
    for chain in receiver._stock:
        note_written(chain)
    if counters.frames > len(sizes):
        raise DefectError("more frames are counted than there were")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield frames and commands as a driver has them, some that are too short, and buffers of all kinds."""

    def inputs(flags: int, chains: list[tuple[list[bytes], list[int]]], *, indirect: bool = False) -> bytes:
        features = int(Feature.VERSION_1 | Feature.INDIRECT_DESC)
        ring = memory("split", SIZE, features, chains, indirect=indirect)
        return bytes([flags, 1, 3, 40, 2]) + ring

    def command(kind: int, number: int, data: bytes) -> tuple[list[bytes], list[int]]:
        return [CONTROL_HEADER.pack(kind, number), data], [1]

    blank = bytes(HEADER.size)
    yield "frames", inputs(1, [([blank, b"\2" * 60], []), ([blank + b"\2" * 14], []), ([b"\1"], [])])
    yield "frame_to_write", inputs(1, [([], [64])])
    commands = [
        command(ControlClass.RX, RxCommand.PROMISC, b"\0"),
        command(ControlClass.MAC, 0, build_mac_tables([b"unicas"], [b"multic"])),
        command(ControlClass.MAC, 1, b"\2addrs"),
        command(ControlClass.VLAN, 0, struct.pack("<H", 5)),
        command(ControlClass.MQ, 0, struct.pack("<H", 2)),
    ]
    yield "commands", inputs(2, commands)
    yield "command_that_is_unknown", inputs(2, [command(99, 0, b"-"), ([b"\0\0\0"], [])])
    buffers: list[tuple[list[bytes], list[int]]] = [([], [700]), ([], [12, 400]), ([], [5, 4, 3, 900])]
    for flags in (0, MERGES, LEGACY, MERGES | LEGACY, MERGES | FILTERS, MERGES | READS, READS):
        yield f"buffers_{flags}", inputs(flags, buffers, indirect=bool(flags & MERGES))

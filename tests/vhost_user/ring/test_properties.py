"""Driver against device: every chain comes back once, with its answer, and nobody sleeps for ever."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.virtio.features import Feature
from tests.vhost_user.ring.rig import BUFFER_SIZE, Rig, work
from vhost_user.frontend.driver_ring import RingFullError

if TYPE_CHECKING:
    import random

    from vhost_user.ring import Chain

LENGTHS = st.lists(st.integers(1, BUFFER_SIZE), max_size=4)
OPTIONS = [Feature.EVENT_IDX, Feature.IN_ORDER, Feature.INDIRECT_DESC, Feature.NOTIFY_ON_EMPTY]


class RingMachine(RuleBasedStateMachine):
    """A driver that sleeps until it is called, a device that sleeps until it is kicked, and five lists.

    The lists hold the tokens of requests: those that the driver has written but not shown, those that
    the device can take, those that it has taken (all, and with their chains those not completed), and
    those that the driver can take back.
    """

    kind: str
    sizes: list[int]

    @initialize(
        data=st.data(),
        options=st.sets(st.sampled_from(OPTIONS)),
        legacy=st.booleans(),
        big_endian=st.booleans(),
        tracked=st.booleans(),
        before=st.sampled_from([0, 0xFFF8, 0xFFFF]),
    )
    def start(
        self,
        *,
        data: st.DataObject,
        options: set[Feature],
        legacy: bool,
        big_endian: bool,
        tracked: bool,
        before: int,
    ) -> None:
        self.features = sum(map(int, options))
        if self.kind == "packed" or not legacy:
            self.features |= Feature.VERSION_1
        self.in_order = Feature.IN_ORDER in options
        size = data.draw(st.sampled_from(self.sizes))
        self.rig = Rig(self.kind, size, self.features, big_endian=big_endian, tracked=tracked)
        self.driver = self.rig.driver
        if self.kind == "split":
            self.rig.wind(before)  # indices are soon to wrap
        self.device = self.rig.start(before if self.kind == "split" else None)
        self.hidden: list[int] = []
        self.available: list[int] = []
        self.taken: list[int] = []
        self.held: list[tuple[int, Chain]] = []
        self.used: list[int] = []
        self.popped: list[int] = []
        """Every token that the device ever took, in order."""
        self.kicked = self.called = False
        self.device_awake = self.driver_awake = True
        self.sleeps_through = 0
        """How many uses the driver asked not to be woken for."""

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.finish()
            self.rig.close()

    def finish(self) -> None:
        """Let both run until nothing is left."""
        self.publish()
        while self.available:
            self.pop(64)
        self.give_back(len(self.held))
        self.collect()
        assert not self.rig.requests
        assert self.driver.free == self.driver.size

    # The driver

    @rule(readable=LENGTHS, writable=LENGTHS, indirect=st.booleans())
    def add(self, readable: list[int], writable: list[int], indirect: bool) -> None:
        indirect &= bool(self.features & Feature.INDIRECT_DESC)
        if readable or writable:
            with contextlib.suppress(RingFullError):
                self.hidden.append(self.rig.add(readable, writable, indirect=indirect).token)

    @rule()
    def publish(self) -> None:
        self.kicked |= self.driver.publish()
        self.available += self.hidden
        self.hidden.clear()

    @precondition(lambda self: self.driver_awake)
    @rule()
    def collect(self) -> None:
        assert self.rig.collect() == self.used
        self.used.clear()

    @precondition(lambda self: self.called)
    @rule()
    def driver_wakes(self) -> None:
        self.called = False
        self.driver_awake = True
        self.driver.want_calls(False)

    @precondition(lambda self: self.driver_awake)
    @rule(after=st.integers(0, 2))
    def driver_sleeps(self, after: int) -> None:
        self.collect()
        can_wait = self.kind == "split" and self.features & Feature.EVENT_IDX
        self.sleeps_through = after if can_wait else 0
        self.driver_awake = self.driver.want_calls(True, after=self.sleeps_through)
        assert not self.driver_awake, "nothing was used since the driver looked"

    # The device

    @precondition(lambda self: self.kicked)
    @rule()
    def device_wakes(self) -> None:
        self.kicked = False
        self.device_awake = True
        self.device.want_kicks(False)

    @precondition(lambda self: self.device_awake)
    @rule(limit=st.integers(1, 5))
    def pop(self, limit: int) -> None:
        batch = self.device.pop(limit)
        assert len(batch) <= limit
        assert bool(batch) == bool(self.available)
        for chain in batch:
            token = self.available.pop(0)
            request = self.rig.requests[token]
            assert b"".join(chain.readable_buffers) == request.sent
            assert chain.readable_length == len(request.sent)
            assert chain.writable_length == request.room
            self.held.append((token, chain))
            self.taken.append(token)
            self.popped.append(token)

    @rule(count=st.integers(0, 8), random=st.randoms(use_true_random=False))
    def push(self, count: int, random: random.Random) -> None:
        random.shuffle(self.held)
        self.give_back(count)

    def give_back(self, count: int) -> None:
        done, self.held = self.held[:count], self.held[count:]
        call = self.device.push([work(chain) for _, chain in done])
        self.called |= call
        if self.in_order:
            unfinished = {token for token, _ in self.held}
            ready = []
            while self.taken and self.taken[0] not in unfinished:
                ready.append(self.taken.pop(0))
        else:
            ready = [token for token, _ in done]
            self.taken = [token for token in self.taken if token not in ready]
        self.used += ready
        if ready and not self.taken and not self.available and self.kind == "split":
            assert call or not self.features & Feature.NOTIFY_ON_EMPTY

    @precondition(lambda self: self.device_awake)
    @rule()
    def device_sleeps(self) -> None:
        self.device_awake = self.device.want_kicks(True)
        assert self.device_awake == bool(self.available)

    # The front-end

    @rule()
    def replace_memory(self) -> None:
        """SET_MEM_TABLE while the ring runs: what was taken keeps its buffers."""
        self.rig.memory.set_table([(self.rig.region, self.rig.file.dup())])

    @rule()
    def stop_and_start(self) -> None:
        """GET_VRING_BASE and a new start: the newest go back into the ring, the others are completed."""
        self.held.sort(key=lambda item: self.popped.index(item[0]))
        back: list[tuple[int, Chain]] = []
        while self.held and self.held[-1][0] == self.popped[-1]:
            back.insert(0, self.held.pop())
            self.popped.pop()
            self.taken.remove(back[0][0])
        self.device.rewind([chain for _, chain in back])
        self.available[:0] = [token for token, _ in back]
        self.give_back(len(self.held))
        self.device = self.rig.start(self.device.base)
        self.device_awake = True

    @precondition(lambda self: self.rig.inflight is not None)
    @rule()
    def kill_and_start(self) -> None:
        """What the device had not given back comes again, in the order of the first time."""
        self.device = self.rig.start()
        self.available[:0] = self.taken
        self.popped = [token for token in self.popped if token not in self.taken]
        self.taken.clear()
        self.held.clear()
        self.device_awake = True
        self.called = True  # as every start does: the process before may have died before it could

    # What must hold

    @invariant()
    def nobody_sleeps_for_ever(self) -> None:
        if hasattr(self, "rig"):
            assert self.device_awake or self.kicked or not self.available
            assert self.driver_awake or self.called or len(self.used) <= self.sleeps_through


class SplitMachine(RingMachine):
    kind = "split"
    sizes = [1, 2, 4, 8]  # noqa: RUF012


class PackedMachine(RingMachine):
    kind = "packed"
    sizes = [1, 2, 3, 4, 7]  # noqa: RUF012


TestSplit = SplitMachine.TestCase
TestPacked = PackedMachine.TestCase

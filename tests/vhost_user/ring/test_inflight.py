"""In-flight tracking: a device is killed between any two stores, and nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import gc
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import inflight
from protocol.virtio.features import Feature
from tests.vhost_user.chains import completed
from tests.vhost_user.ring.rig import BUFFERS, CHAIN_SIZE, MODERN, PACKED_START, Rig, work
from tests.vhost_user.ring.stores import every_store
from vhost_user.frontend.driver_ring import RingFullError
from vhost_user.ring import BrokenRingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.ring import Chain, Ring

KINDS = ["split", "packed"]
RING_BYTES = 0x200
"""How much of the guest's memory is looked at after each store: the ring."""
BUFFERS_END = BUFFERS + 64 * CHAIN_SIZE

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "pop", "push", "collect", "rewind"]), st.integers(0, 50)),
    max_size=12,
)


class Scene:
    """A driver and a tracked device that do the same again whenever they are given the same steps."""

    def __init__(self, kind: str, size: int, features: int) -> None:
        self.rig = Rig(kind, size, features, tracked=True)
        self.device: Ring = self.rig.start()
        self.order: list[int] = []
        """Tokens that the device was shown and has not taken."""
        self.held: list[tuple[int, Chain]] = []

    def close(self) -> None:
        del self.device, self.held
        self.rig.close()

    def do(self, step: Step) -> None:
        name, number = step
        getattr(self, name)(number)

    def add(self, number: int) -> None:
        """Add up to three requests of one to three descriptors."""
        chance = random.Random(number)
        for _ in range(chance.randint(1, 3)):
            try:
                request = self.rig.add(
                    [3] * chance.randint(1, 2), [2] * chance.randint(0, 1), indirect=chance.random() < 0.3
                )
            except RingFullError:
                break
            self.order.append(request.token)
        self.rig.driver.publish()

    def pop(self, number: int) -> None:
        chains = self.device.pop(number % 4 + 1)
        self.held += [(self.order.pop(0), chain) for chain in chains]

    def push(self, number: int) -> None:
        random.Random(number).shuffle(self.held)
        count = number % 4 + 1
        done, self.held = self.held[:count], self.held[count:]
        self.device.push([work(chain) for _, chain in done])

    def collect(self, _number: int) -> None:
        self.rig.collect()

    def rewind(self, number: int) -> None:
        """Put the newest back, if they are the ones that were taken last."""
        self.held.sort(key=lambda item: item[0])
        back = self.held[len(self.held) - number % 3 :] if number % 3 else []
        newest = self.order[0] if self.order else self.rig.next_token
        if [token for token, _ in back] != list(range(newest - len(back), newest)):
            return
        del self.held[len(self.held) - len(back) :]
        self.order[:0] = [token for token, _ in back]
        self.device.rewind([chain for _, chain in back])

    def shared(self) -> list[memoryview]:
        assert self.rig.inflight is not None
        return [self.rig.view[:RING_BYTES], self.rig.inflight]

    def restore(self, snapshot: list[bytes], answers: bytes) -> None:
        """Make the shared memory what a killed device left: the ring, the in-flight buffer, its answers."""
        self.rig.view[BUFFERS:BUFFERS_END] = answers
        for memory, old in zip(self.shared(), snapshot, strict=True):
            memory[:] = old


def recover(scene: Scene) -> None:
    """Start a new device after a kill, and assert that it does what is left to do, once, in order."""
    rig = scene.rig
    rig.collect()
    left = sorted(rig.requests)
    scene.device = rig.start()
    again = []
    while chains := scene.device.pop(64):
        for chain in chains:
            sent = b"".join(chain.readable_buffers)
            again += [token for token in left if rig.requests[token].sent == sent]
        scene.device.push([work(chain) for chain in chains])
    assert again == left
    assert rig.collect() == left
    assert rig.driver.free == rig.driver.size


def killed_in(play: Callable[[], Scene], last: Step) -> None:
    """Kill the device after each store of the `last` step, and the next one after each of its start."""
    scene = play()
    with every_store(scene.shared()) as snapshots:
        scene.do(last)
    answers = bytes(scene.rig.view[BUFFERS:BUFFERS_END])
    scene.close()
    for snapshot in snapshots:
        scene = play()
        scene.restore(snapshot, answers)
        with every_store(scene.shared()) as later:
            scene.rig.start()
        scene.close()
        for second in later:
            scene = play()
            scene.restore(second, answers)
            recover(scene)
            scene.close()


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    steps=STEPS,
    last=st.tuples(st.sampled_from(["pop", "push", "rewind"]), st.integers(0, 50)),
    in_order=st.booleans(),
)
def test_killed_after_any_store(
    kind: str, data: st.DataObject, steps: list[Step], last: Step, in_order: bool
) -> None:
    size = data.draw(st.sampled_from([2, 4, 8] if kind == "split" else [2, 3, 4, 7]))
    features = MODERN | (Feature.IN_ORDER if in_order else 0)

    def play() -> Scene:
        scene = Scene(kind, size, features)
        for step in steps:
            scene.do(step)
        return scene

    killed_in(play, last)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_it_takes_what_was_used_before(kind: str) -> None:
    """What the buffer says of an earlier request in the same place must not count for the new one."""

    def play() -> Scene:
        scene = Scene(kind, 4, MODERN)
        for _ in range(2):
            scene.order.append(scene.rig.add([1], []).token)
        scene.rig.driver.publish()
        scene.pop(1)
        (token, first), second = scene.held
        scene.device.push([completed(first, 0)])
        scene.held = [second]
        assert scene.rig.collect() == [token]
        scene.order.append(scene.rig.add([1], []).token)
        scene.rig.driver.publish()
        return scene

    killed_in(play, ("pop", 0))


# Rule 20, piece by piece


def words(region: memoryview) -> memoryview:
    return region.cast("H")


@pytest.fixture
def tracked(request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(request.param, 4, MODERN)
    yield scene
    scene.close()
    gc.collect()


split_only = pytest.mark.parametrize("tracked", ["split"], indirect=True)
packed_only = pytest.mark.parametrize("tracked", ["packed"], indirect=True)
both = pytest.mark.parametrize("tracked", KINDS, indirect=True)


@both
def test_rule_20_a_buffer_of_version_0_is_made_ready(tracked: Scene) -> None:
    assert tracked.rig.inflight is not None
    assert list(words(tracked.rig.inflight)[4:6]) == [1, 4], "version, number of entries"


@both
def test_rule_20_resubmitted_in_the_order_of_the_first_time(tracked: Scene) -> None:
    for length in (1, 2, 3, 4):
        tracked.rig.add([length], [])
    tracked.rig.driver.publish()
    chains = tracked.device.pop(4)
    tracked.device.push([completed(chains[1], 0)])
    tracked.rig.collect()
    tracked.rig.add([5], [])
    tracked.rig.driver.publish()
    tracked.device.pop(4)
    again = []
    device = tracked.rig.start()
    while chains := device.pop(4):
        again += [chain.readable_length for chain in chains]
    assert again == [1, 3, 4, 5], "the place that 5 took was free before that of 3 was"


@both
def test_rule_20_what_was_taken_again_is_counted_after_what_was_resubmitted(tracked: Scene) -> None:
    """The counter goes on where the process before stopped."""
    for length in (1, 2):
        tracked.rig.add([length], [])
    tracked.rig.driver.publish()
    tracked.device.pop(2)
    device = tracked.rig.start()
    tracked.rig.add([3], [])
    tracked.rig.driver.publish()
    assert sum(len(device.pop(4)) for _ in range(3)) == 3
    again = []
    device = tracked.rig.start()
    while chains := device.pop(4):
        again += [chain.readable_length for chain in chains]
    assert again == [1, 2, 3]


@split_only
def test_rule_20_nothing_completed_yet(tracked: Scene) -> None:
    """SPDK's issue 3766: last_batch_head is 0, but descriptor 0 was not in any batch.

    The ring had run before it got the buffer, as after a migration, so its used index was not 0.
    """
    rig = tracked.rig
    rig.inflight = None
    device = rig.start()
    rig.add([1], [])
    rig.driver.publish()
    device.push([completed(chain, 0) for chain in device.pop(1)])
    rig.collect()
    rig.inflight = memoryview(bytearray(inflight.queue_bytes(4, packed=False)))
    device = rig.start(device.base)
    rig.add([1], [])
    rig.driver.publish()
    (chain,) = device.pop(1)
    assert chain.head == 0
    assert [chain.head for chain in rig.start().pop(1)] == [0]


@both
@pytest.mark.parametrize(
    ("completed", "taken", "new"),
    [(0, 0, 2), (0, 1, 0), (3, 0, 0), (3, 1, 2), (4, 1, 2), (7, 0, 2), (7, 1, 0), (11, 1, 2)],
)
def test_rule_20_a_new_ring_of_a_driver_that_was_reset(
    tracked: Scene, completed: int, taken: int, new: int
) -> None:
    """Whatever the old ring had come to, the new one is at its beginning."""
    rig = tracked.rig
    for _ in range(completed):
        rig.add([1], [], indirect=True)
        rig.driver.publish()
        tracked.device.push([work(chain) for chain in tracked.device.pop(1)])
        rig.collect()
    for _ in range(taken):
        rig.add([1], [])
        rig.driver.publish()
        assert tracked.device.pop(1)
    fresh = Scene(rig.kind, 4, MODERN)
    fresh.rig.inflight = rig.inflight
    fresh.order = [fresh.rig.add([2], []).token for _ in range(new)]
    fresh.rig.driver.publish()
    device = fresh.rig.start()
    assert device.base == (0 if rig.kind == "split" else PACKED_START)
    assert [chain.readable_length for chain in device.pop(4)] == [2] * new
    recover(fresh)
    fresh.close()


@packed_only
@pytest.mark.parametrize("completed", [1, 2, 5])
def test_ring_is_its_own_while_the_driver_writes_a_chain_that_goes_once_around(
    tracked: Scene, completed: int
) -> None:
    """Its descriptors are in the next lap already where the last chains were given back."""
    for _ in range(completed):
        tracked.rig.add([1], [])
        tracked.rig.driver.publish()
        tracked.device.push([work(chain) for chain in tracked.device.pop(1)])
        tracked.rig.collect()
    tracked.rig.add([2] * 4, [])
    base = tracked.device.base
    tracked.device = tracked.rig.start()
    assert tracked.device.base == base
    tracked.rig.driver.publish()
    recover(tracked)


@both
def test_ring_of_another_size_does_not_get_what_was_in_flight(tracked: Scene) -> None:
    """A boot loader's ring may be smaller than the system's."""
    rig = tracked.rig
    rig.add([1], [])
    rig.driver.publish()
    assert tracked.device.pop(1)
    small = Scene(rig.kind, 2, MODERN)
    small.rig.inflight = rig.inflight
    assert small.rig.start().pop(1) == []
    small.add(0)
    recover(small)
    small.close()


@both
def test_buffer_of_another_version(tracked: Scene) -> None:
    assert tracked.rig.inflight is not None
    words(tracked.rig.inflight)[4] = 2
    with pytest.raises(BrokenRingError, match="the in-flight buffer has version 2; 1 is known"):
        tracked.rig.start()


@both
def test_buffer_too_small(tracked: Scene) -> None:
    assert tracked.rig.inflight is not None
    tracked.rig.inflight = tracked.rig.inflight[:64]
    with pytest.raises(BrokenRingError, match="the in-flight buffer has 64 bytes for a queue that needs"):
        tracked.rig.start()


@pytest.mark.parametrize("kind", KINDS)
@given(nonsense=st.binary(min_size=160, max_size=160))
def test_any_buffer_is_used_or_refused(kind: str, nonsense: bytes) -> None:
    """The front-end keeps it for us: what it gives back may be anything."""
    scene = Scene(kind, 4, MODERN)
    assert scene.rig.inflight is not None
    scene.rig.inflight[: len(nonsense)] = nonsense[: len(scene.rig.inflight)]
    words(scene.rig.inflight)[4], words(scene.rig.inflight)[5] = 1, 4
    scene.add(0)
    with contextlib.suppress(BrokenRingError):
        scene.device = scene.rig.start()
        for _ in range(8):
            scene.device.push([completed(chain, 0) for chain in scene.device.pop(8)])
    scene.close()

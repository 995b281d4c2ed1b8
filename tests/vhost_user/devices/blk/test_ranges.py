"""Ranges of bytes that threads are at work on: who waits for whom."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack

from vhost_user.devices.blk.ranges import RangeLock

SECONDS = 60
THREADS = 8
ROUNDS = 200
PLACES = 16


def until_asked(ranges: RangeLock, count: int) -> None:
    """Wait until so many are at work or wait."""
    deadline = time.monotonic() + SECONDS
    while len(ranges) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # in another thread, which has nothing to tell of it


def test_who_shares_a_range_waits_for_nobody() -> None:
    ranges = RangeLock()
    with ExitStack() as stack:
        stack.enter_context(ranges.hold(0, 8))
        stack.enter_context(ranges.hold(4, 12))
        stack.enter_context(ranges.hold(12, 16, alone=True))  # touches them, and has no byte of theirs


def test_who_is_to_be_alone_is_waited_for_and_none_is_overtaken() -> None:
    """Not even by somebody who could share with those at work."""
    ranges = RangeLock()
    order: list[str] = []

    def hold(name: str, *, alone: bool) -> None:
        with ranges.hold(0, 8, alone=alone):
            order.append(name)

    with ranges.hold(0, 8):
        waiting = []
        for number, (name, alone) in enumerate([("alone", True), ("shared", False), ("alone again", True)]):
            thread = threading.Thread(target=hold, args=(name,), kwargs={"alone": alone})
            thread.start()
            waiting.append(thread)
            until_asked(ranges, number + 2)
        assert order == []
    for thread in waiting:
        thread.join(SECONDS)
    assert order == ["alone", "shared", "alone again"]
    assert len(ranges) == 0


def test_range_is_free_again_after_an_error() -> None:
    ranges = RangeLock()
    for alone in (True, False, True):
        try:
            with ranges.hold(0, 8, alone=alone):
                raise OSError
        except OSError:
            pass
    assert len(ranges) == 0


def test_nobody_is_at_work_where_somebody_is_alone() -> None:
    ranges = RangeLock()
    shared, alone = [0] * PLACES, [0] * PLACES
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            start = rng.randrange(PLACES)
            end = rng.randint(start + 1, PLACES)
            is_alone = rng.random() < 0.3
            counts = alone if is_alone else shared
            with ranges.hold(start, end, alone=is_alone):
                with lock:
                    for place in range(start, end):
                        counts[place] += 1
                        if alone[place] > 1 or (alone[place] and shared[place]):
                            wrong.append(place)
                with lock:
                    for place in range(start, end):
                        counts[place] -= 1

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len(ranges) == 0

"""Lines that lose, delay, reorder, repeat and damage frames, and are slow: what is always true of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user.devices.net.ports import impairments as module
from vhost_user.devices.net.ports.impairments import (
    MOST_BYTES,
    MOST_FRAMES,
    QUEUE_BYTES,
    Impairment,
    Impairments,
)

HEADER = bytes(12)


def frame(number: int, size: int = 60) -> bytes:
    return HEADER + number.to_bytes(4, "big") + bytes(size - 16)


def number(frame: bytes) -> int:
    return int.from_bytes(frame[12:16], "big")


def drain(line: Impairment, now: float = 0.0) -> list[tuple[float, bytes]]:
    """Return what comes out of a line by itself, with the time of each, in exact steps."""
    out = [(now, each) for each in line.take(now)]
    while line.held:
        next_time = line.next_time
        assert next_time is not None
        out += [(next_time, each) for each in line.take(next_time)]
    assert line.next_time is None
    return out


def test_perfect_line() -> None:
    line = Impairment()
    states = [line.is_perfect]
    line.put(frame(1), 5)
    states.append(line.is_perfect)
    assert line.take(5) == [frame(1)]
    assert [*states, line.is_perfect] == [True, False, True]


def test_loss_follows_from_the_seed() -> None:
    def lost(seed: str, **others: float) -> set[int]:
        line = Impairment(Impairments(loss=0.3, **others), seed=seed)
        for each in range(1000):
            line.put(frame(each), each)
        arrived = {number(each) for _, each in drain(line, 1000)}
        assert line.counts.lost == 1000 - len(arrived)
        return set(range(1000)) - arrived

    assert 200 < len(lost("1")) < 400
    assert lost("1") == lost("1")
    assert lost("1") != lost("2")
    assert lost("1", delay=2.0, jitter=1.0, reorder=0.5, rate=1e9) == lost("1")


@pytest.mark.parametrize(("loss", "arrived"), [(0.0, 100), (1.0, 0)])
def test_all_or_nothing(loss: float, arrived: int) -> None:
    line = Impairment(Impairments(loss=loss, delay=1))
    for each in range(100):
        line.put(frame(each), 0)
    assert len(line.take(1)) == arrived


def test_delay() -> None:
    line = Impairment(Impairments(delay=0.5))
    line.put(frame(1), 1)
    line.put(frame(2), 1.25)
    assert line.next_time == 1.5
    assert line.take(1.499) == []
    assert line.take(1.5) == [frame(1)]
    assert line.next_time == 1.75
    assert line.take(9) == [frame(2)]
    assert line.next_time is None


def test_jitter_varies_the_delay_within_its_bounds() -> None:
    line = Impairment(Impairments(delay=10, jitter=4))
    delays = []
    for start in range(0, 30000, 100):
        line.put(frame(start), start)
        ((time, _),) = drain(line, start)
        delays.append(time - start)
    assert 6 <= min(delays) < 6.5
    assert 13.5 < max(delays) <= 14
    assert len(set(delays)) > 250


def test_jitter_alone_lets_no_frame_overtake() -> None:
    line = Impairment(Impairments(delay=0.1, jitter=0.1))
    for each in range(300):
        line.put(frame(each), each / 1000)
    assert [number(each) for _, each in drain(line)] == list(range(300))


def test_reordered_frames_overtake() -> None:
    line = Impairment(Impairments(delay=1, reorder=0.1), seed="r")
    for each in range(200):
        line.put(frame(each), each / 1000)
    arrived = drain(line)
    early = [each for time, each in arrived if time - number(each) / 1000 < 0.5]
    assert len(early) == line.counts.reordered
    assert 5 < len(early) < 50
    late = [number(each) for _, each in arrived if each not in early]
    assert late == sorted(late)


def test_rate() -> None:
    line = Impairment(Impairments(rate=8000))
    for each in range(3):
        line.put(frame(each, 100), 5)
    assert [time for time, _ in drain(line, 5)] == pytest.approx([5.1, 5.2, 5.3])
    line.put(frame(9, 50), 7)
    assert [time for time, _ in drain(line, 7)] == pytest.approx([7.05])


def test_queue_of_a_slow_line_is_bounded() -> None:
    line = Impairment(Impairments(rate=8e6))
    size = 1000
    fitting = QUEUE_BYTES // size
    for each in range(2 * fitting):
        line.put(frame(each, size), 0)
    arrived = [number(each) for _, each in drain(line)]
    assert arrived == list(range(fitting))
    assert line.counts.overrun == fitting


def test_frame_larger_than_the_queue_passes_alone() -> None:
    line = Impairment(Impairments(rate=1e6))
    line.put(frame(1, QUEUE_BYTES + 1000), 0)
    assert len(drain(line)) == 1


def test_what_is_held_is_bounded() -> None:
    line = Impairment(Impairments(delay=1))
    for each in range(MOST_FRAMES + 10):
        line.put(frame(each), 0)
    assert line.held == MOST_FRAMES
    assert line.counts.overrun == 10
    assert len(line.take(1)) == MOST_FRAMES
    for each in range(MOST_BYTES // (1 << 16) + 10):
        line.put(frame(each, 1 << 16), 1)
    assert line.held_bytes == MOST_BYTES
    assert line.counts.overrun == 20
    assert len(line.take(2)) == MOST_BYTES // (1 << 16)
    assert line.held_bytes == 0


def test_duplicates_and_damage() -> None:
    line = Impairment(Impairments(duplicate=1, corrupt=1, delay=1))
    line.put(frame(7), 0)
    first, second = line.take(1)
    assert first == second
    wrong = int.from_bytes(first, "big") ^ int.from_bytes(frame(7), "big")
    assert wrong.bit_count() == 1
    assert first[:12] == HEADER


def test_change_does_not_leave_frames_behind() -> None:
    line = Impairment(Impairments(delay=100))
    line.put(frame(1), 0)
    line.put(frame(2), 1)
    line.change(Impairments(delay=2), 2)
    line.put(frame(3), 3)
    assert [(time, number(each)) for time, each in drain(line)] == [(4, 1), (4, 2), (5, 3)]


def test_change_of_the_rate_counts_for_what_waits() -> None:
    line = Impairment(Impairments(rate=8))
    for each in range(3):
        line.put(frame(each, 100), 0)
    assert line.take(50) == []
    line.change(Impairments(rate=8000), 50)
    assert [time for time, _ in drain(line)] == pytest.approx([50.1, 50.2, 50.3])


def test_cut() -> None:
    line = Impairment(Impairments(delay=100, rate=8e6))
    line.put(frame(1), 0)
    line.cut()
    assert (line.held, line.held_bytes, line.counts.cut_off, line.next_time) == (0, 0, 1, None)
    line.change(Impairments(), 1)
    line.put(frame(2), 1)
    assert line.take(1) == [frame(2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": 1.5}, "loss is 1.5; a share is from 0 to 1, or 0% to 100%"),
        ({"reorder": -1}, "reorder is -1"),
        ({"delay": -1}, "delay is -1; it has to be 0 or more"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"jitter": 0.1}, r"jitter \(0.1 s\) is more than the delay \(0 s\)"),
        ({"reorder": 0.1}, "reorder needs a delay"),
    ],
)
def test_what_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Impairments(**settings)


SHARES = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def impairments(draw: st.DrawFn, *, reorder: bool = True) -> Impairments:
    delay = draw(st.sampled_from([0.0, 0.001, 0.3]))
    return Impairments(
        loss=draw(SHARES),
        duplicate=draw(SHARES),
        corrupt=draw(SHARES),
        delay=delay,
        jitter=draw(st.sampled_from([0.0, delay / 2, delay])),
        reorder=draw(SHARES) if reorder and delay else 0.0,
        rate=draw(st.sampled_from([0.0, 8e3, 1e6, 1e9])),
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "change", "cut"]),
        st.sampled_from([0.0, 0.0001, 0.01, 0.2]),
        st.sampled_from([16, 60, 1500, 60000]),
    ),
    max_size=60,
)


def run(
    line: Impairment, steps: list[tuple[str, float, int]], changes: list[Impairments]
) -> list[tuple[float, bytes]]:
    """Do the steps; return what came out, with the times."""
    now, count, out = 0.0, 0, []
    for what, later, size in steps:
        then = now + later
        while (next_time := line.next_time) is not None and next_time <= then:
            now = max(now, next_time)
            out += [(now, each) for each in line.take(now)]
        now = then
        if what == "put":
            line.put(frame(count, size), now)
            count += 1
        elif what == "take":
            out += [(now, each) for each in line.take(now)]
        elif what == "change" and changes:
            line.change(changes.pop(), now)
        elif what == "cut":
            line.cut()
        check_bounds(line)
    return out + drain(line, now)


def check_bounds(line: Impairment) -> None:
    counts = line.counts
    gone = counts.lost + counts.overrun + counts.cut_off + counts.arrived
    assert counts.sent + counts.duplicated == gone + line.held
    assert (line.held == 0) == (line.held_bytes == 0)
    assert line.held <= MOST_FRAMES
    assert line.held_bytes <= MOST_BYTES


@given(impairments(), STEPS, st.lists(impairments(), max_size=3))
def test_nothing_is_invented_and_nothing_vanishes(
    settings: Impairments, steps: list[tuple[str, float, int]], changes: list[Impairments]
) -> None:
    line = Impairment(settings, seed="s")
    out = run(line, steps, changes)
    check_bounds(line)
    assert line.held == 0
    assert line.counts.arrived == len(out)
    sizes = [size for what, _, size in steps if what == "put"]
    for _, each in out:
        if line.counts.corrupted == 0:
            assert each == frame(number(each), sizes[number(each)])
    assert len(out) <= len(sizes) + line.counts.duplicated


@given(impairments(reorder=False), STEPS, st.lists(impairments(reorder=False), max_size=3))
def test_frames_arrive_in_order_and_never_before_they_were_sent(
    settings: Impairments, steps: list[tuple[str, float, int]], changes: list[Impairments]
) -> None:
    whole = [each if each.corrupt == 0 else Impairments() for each in [settings, *changes]]
    line = Impairment(whole[0], seed="s")
    out = run(line, steps, whole[1:])
    order = [number(each) for _, each in out]
    assert order == sorted(order)
    sent, now = [], 0.0
    for what, later, _ in steps:
        now += later
        if what == "put":
            sent.append(now)
    for time, each in out:
        assert time >= sent[number(each)]


@given(impairments(), STEPS)
def test_delay_is_within_the_jitter(settings: Impairments, steps: list[tuple[str, float, int]]) -> None:
    """With nothing to wait for but the delay."""
    settings = Impairments(delay=settings.delay, jitter=settings.jitter, loss=settings.loss)
    line = Impairment(settings, seed="s")
    out = run(line, [("put", later, size) for _, later, size in steps], [])
    sent, now = [], 0.0
    for _, later, _ in steps:
        now += later
        sent.append(now)
    for time, each in out:
        least = sent[number(each)] + settings.delay - settings.jitter
        assert least - 1e-9 <= time <= sent[number(each)] + settings.delay + settings.jitter + 1e-9


@given(impairments(), STEPS, st.sampled_from([8e3, 1e5, 1e7]))
def test_rate_is_never_exceeded(
    settings: Impairments, steps: list[tuple[str, float, int]], rate: float
) -> None:
    """In no window more comes out than the rate allows, beside the frame that was begun before it."""
    values = {**vars(settings), "rate": rate}
    line = Impairment(Impairments(**values), seed="s")
    out = run(line, [step for step in steps if step[0] != "change"], [])
    ends = [(time, len(each) * 8 / rate) for time, each in out]
    for first in range(len(ends)):
        used = 0.0
        for time, seconds in ends[first + 1 :]:
            used += seconds
            assert used <= time - ends[first][0] + 1e-6


def test_module_knows_no_clock() -> None:
    """It has to be usable in any program, and tested without one."""
    assert not {"trio", "time"} & set(vars(module))

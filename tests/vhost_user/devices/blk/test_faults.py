"""Rules of a disk that fails on purpose."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.program.command_line import UserError
from protocol.virtio.blk import RequestType
from vhost_user.devices.blk.faults import Action, Fault, FaultFile, Faults, parse_fault, parse_faults
from vhost_user.devices.blk.requests import Request, Segment

if TYPE_CHECKING:
    from pathlib import Path


def request(kind: RequestType, first: int = 0, count: int = 1) -> Request:
    return Request(kind, (Segment(first, count),))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("read:lba=100-200:error", Fault(Action.ERROR, RequestType.IN, range(100, 201))),
        ("write:lba=7:stuck", Fault(Action.STUCK, RequestType.OUT, range(7, 8))),
        ("flush:unsupported", Fault(Action.UNSUPPORTED, RequestType.FLUSH)),
        ("discard:times=3:error", Fault(Action.ERROR, RequestType.DISCARD, times=3)),
        ("write-zeroes:error", Fault(Action.ERROR, RequestType.WRITE_ZEROES)),
        ("get-id:error", Fault(Action.ERROR, RequestType.GET_ID)),
        ("any:latency=10ms", Fault(Action.LATENCY, seconds=0.01)),
        ("any:latency=1.5s", Fault(Action.LATENCY, seconds=1.5)),
        ("any:times=2:lba=0-9:latency=250us", Fault(Action.LATENCY, None, range(10), 2, 0.00025)),
    ],
)
def test_rule_as_people_write_it(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not an operation: read, write, flush"),
        ("erase:error", "'erase' is not an operation"),
        ("read", "'read' says nothing to do; write it as OPERATION"),
        ("read:", "'' is not an action: error, unsupported, stuck or latency=TIME"),
        ("read:explode", "'explode' is not an action"),
        ("read:stuck=1", "'stuck=1' is not an action"),
        ("read:latency", "'' is not a time; write it as 20ms"),
        ("read:latency=10", "'10' is not a time"),
        ("read:latency=-1ms", "'-1ms' is not a time"),
        ("read:lba=200-100:error", "'200-100' are not sectors"),
        ("read:lba=x:error", "'x' are not sectors; write them as 100-200"),
        ("read:times=0:error", "'0' is not a number of times"),
        ("read:sector=1:error", "'sector=1' is not a condition: lba=FIRST-LAST or times=N"),
    ],
)
def test_wrong_rule_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        parse_fault(text)


def test_file_of_rules_has_comments_and_empty_lines() -> None:
    text = "# a bad spot\nread:lba=5:error  # here\n\n  any:stuck\n"
    assert parse_faults(text) == [parse_fault("read:lba=5:error"), parse_fault("any:stuck")]


@pytest.mark.parametrize(
    ("first", "count", "hit"),
    [
        (99, 1, False),
        (99, 2, True),
        (100, 1, True),
        (200, 1, True),
        (201, 1, False),
        (0, 1000, True),
        (150, 0, True),
    ],
)
def test_rule_is_about_requests_that_touch_its_sectors(first: int, count: int, hit: bool) -> None:
    faults = Faults([parse_fault("read:lba=100-200:error")])
    assert (faults.take(request(RequestType.IN, first, count)) is not None) is hit


def test_rule_with_sectors_is_about_any_segment_and_no_flush() -> None:
    faults = Faults([parse_fault("any:lba=10:error")])
    assert faults.take(Request(RequestType.DISCARD, (Segment(0, 1), Segment(8, 4))))
    assert faults.take(Request(RequestType.FLUSH)) is None


def test_rule_is_about_its_operation() -> None:
    faults = Faults([parse_fault("write:error")])
    assert faults.take(request(RequestType.IN)) is None
    assert faults.take(request(RequestType.OUT)) is not None


def test_first_rule_that_fits_counts() -> None:
    faults = Faults([parse_fault("read:lba=3:stuck"), parse_fault("any:error")])
    stuck, error = faults.take(request(RequestType.IN, 3)), faults.take(request(RequestType.IN, 4))
    assert stuck is not None
    assert error is not None
    assert (stuck.action, error.action) == (Action.STUCK, Action.ERROR)


def test_rule_is_gone_after_its_times() -> None:
    faults = Faults([parse_fault("read:times=2:error"), parse_fault("read:stuck")])
    taken = [faults.take(request(RequestType.IN)) for _ in range(4)]
    assert [fault and fault.action for fault in taken] == [Action.ERROR] * 2 + [Action.STUCK] * 2
    assert len(faults) == 1


async def test_whoever_waits_hears_of_a_change() -> None:
    faults = Faults([parse_fault("any:stuck")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(faults.changed)
        nursery.start_soon(faults.changed)
        await wait_all_tasks_blocked()
        faults.set([])
    assert not faults


def test_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "faults"
    path.write_text("read:error\n")
    file = FaultFile(str(path))
    assert file.read() == [parse_fault("read:error")]
    assert file.changed() is None

    path.write_text("read:error\nwrite:error\n")
    assert file.changed() == [parse_fault("read:error"), parse_fault("write:error")]
    assert file.changed() is None

    path.write_text("nonsense\n")
    assert file.changed() is None
    assert f"{path}: 'nonsense' is not an operation" in caplog.text

    path.unlink()
    assert file.changed() == []


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "faults")
    with pytest.raises(UserError, match="faults is a pipe, which is read once only; give a file of rules"):
        FaultFile(str(tmp_path / "faults")).read()


def test_file_that_is_not_there_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; an empty file is one without faults"):
        FaultFile(str(tmp_path / "faults")).read()

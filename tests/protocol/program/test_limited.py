"""Warnings of which so many are logged in a while, and the others counted."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from protocol.program.warnings import LimitedLogger

if TYPE_CHECKING:
    import pytest

LOG = logging.getLogger("vhost_user.test")


def test_so_many_are_logged_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedLogger(LOG, "failed requests", most=2, seconds=3600)
    for number in range(5):
        limited.warning(f"{number} %s")
    limited.settle()
    assert caplog.messages == ["0 %s", "1 %s"]
    limited.settle(now=True)
    limited.settle(now=True)
    assert caplog.messages[2:] == ["3 more failed requests were left out here, where 2 in 3600 s are logged"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_what_was_left_out_is_told_before_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = LimitedLogger(LOG, "failures", most=1, seconds=60, clock=lambda: now)
    for number in range(3):
        limited.warning(f"failure {number}")
    now = 160.0
    limited.warning("failure 3")
    assert caplog.messages == [
        "failure 0",
        "2 more failures were left out here, where 1 in 60 s are logged",
        "failure 3",
    ]


def test_what_was_left_out_is_told_when_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = LimitedLogger(LOG, "failures", most=1, seconds=60, clock=lambda: now)
    for number in range(3):
        limited.warning(f"failure {number}")
    now = 159.0
    limited.settle()
    assert len(caplog.messages) == 1
    now = 160.0
    limited.settle()
    assert caplog.messages[1:] == ["2 more failures were left out here, where 1 in 60 s are logged"]


def test_none_is_lost_among_threads(caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedLogger(LOG, "failures", most=10, seconds=3600)

    def fail() -> None:
        for _ in range(100):
            limited.warning("failed")

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limited.settle(now=True)
    assert caplog.messages.count("failed") == 10
    assert caplog.messages[-1].startswith("790 more failures")

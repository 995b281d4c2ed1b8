"""Warnings that are logged once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.program.warnings import FailureLogger, OnceLogger

if TYPE_CHECKING:
    import pytest


def test_each_is_logged_once_and_so_many_at_most(caplog: pytest.LogCaptureFixture) -> None:
    once = OnceLogger(logging.getLogger("vhost_user.test"), most=2)
    for text in ("100 %s", "100 %s", "another", "one more", "another"):
        once.warning(text)
    assert caplog.messages == ["100 %s", "another"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_failure_is_logged_again_once_it_has_worked(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLogger(logging.getLogger("vhost_user.test"))
    for text in ("100 %s", "100 %s", "another", "another", None, "another"):
        if text is None:
            failures.worked()
        else:
            failures.failed(text)
    assert caplog.messages == ["100 %s", "another", "another"]

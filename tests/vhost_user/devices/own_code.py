"""Code of users that goes wrong: what it raises, and what of it is in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SECONDS = 60


class Mistake(Exception):  # noqa: N818 -- what it is
    """What users' code raises here."""


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often a traceback was logged."""
    return caplog.text.count("Traceback (most recent call last)")

"""User Mode Linux takes long to build: users may leave these tests out, CI may not."""

from __future__ import annotations

import os

import pytest

from tests.rig.guest import uml_kernel


@pytest.fixture(scope="session", autouse=True)
def kernel() -> None:
    """See that User Mode Linux is built."""
    if uml_kernel.built() is None:
        reason = "User Mode Linux is not built here: `make uml` builds it, in one to three minutes"
        if "CI" in os.environ:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)

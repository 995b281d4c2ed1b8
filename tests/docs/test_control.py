"""docs/control.md is true: its code runs, its options are the program's."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from tests.docs.documents import blocks, read
from tests.docs.test_vhost_user import described, documented
from vhost_user import CallError
from vhost_user.program.control import _add_options
from vhost_user.simulation.simulation import EVENT_BACKLOG

GUIDE = read("control.md")


def test_options() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    _add_options(parser)
    heading = "`--events` prints what happens from then on, a line of JSON for each event, until Ctrl-C."
    assert documented(heading, GUIDE) == [described(action) for action in parser._actions]


async def test_the_lamp_of_ones_own() -> None:
    names: dict[str, Any] = {"__name__": "lamp"}
    exec(blocks(GUIDE, "python")[1], names)  # noqa: S102
    lamp = names["Lamp"]()
    with lamp.events() as events:
        assert await lamp.find_call("switch").make({"lit": True}) is None
        assert (await anext(events)).data == {"lit": True, "brightness": 100}
    assert await lamp.find_call("state").make({}) is True
    with pytest.raises(CallError, match="101 is no percentage"):
        lamp.switch(lit=False, brightness=101)


def test_the_client_compiles() -> None:
    names: dict[str, Any] = {}
    exec(blocks(GUIDE, "python")[0], names)  # noqa: S102
    assert callable(names["warm_up"])


def test_figures() -> None:
    assert re.findall(r"(\d+) events behind", GUIDE) == [str(EVENT_BACKLOG)]

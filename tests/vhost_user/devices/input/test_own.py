"""Users' own sources and scripts go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.errors import LocalProtocolError
from protocol.virtio.input import CONFIG_SIZE, EVENT, EVENTQ, STATUSQ, ConfigSelect, Event
from protocol.virtio.input_codes import EventType, Led
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.player import InputDevices, Player
from vhost_user.devices.input.reports import Reports
from vhost_user.devices.input.script import ScriptError, Step
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

from tests.vhost_user.devices.own_code import Mistake, tracebacks


class OwnKeyboard(Keyboard):
    """One with mistakes."""

    def take_status(self, event: Event) -> None:
        raise Mistake("in take_status")

    async def run(self) -> None:
        raise Mistake("in run")

    async def play(self) -> None:
        raise Mistake("in play")


async def test_source_that_fails_leaves_the_device_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    keyboard = OwnKeyboard()
    with Input(keyboard) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run_host)
            async with driving(device) as front:
                status = await front.start_queue(STATUSQ)
                for _ in range(20):
                    await status.request(Event(EventType.LED, Led.CAPSL, 1).encode())
                events = await front.start_queue(EVENTQ)
                buffer = events.submit(EVENT.size)
                keyboard.reports.post([Event(EventType.KEY, 30, 1)])
                assert Event.decode(await events.wait(buffer)).code == 30
            nursery.cancel_scope.cancel()
    assert "the input source OwnKeyboard failed: what the guest wants is not done. This is logged once." in (
        caplog.messages
    )
    assert "Mistake: in run" in caplog.text
    assert tracebacks(caplog) == 2


async def test_description_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    keyboard = Keyboard()
    keyboard.description = dataclasses.replace(keyboard.description, events={EventType.KEY: {1 << 20}})  # type: ignore[dict-item]
    async with driving(Input(keyboard)) as front:
        await front.set_config(0, bytes([ConfigSelect.EV_BITS, EventType.KEY]))
        config = await front.get_config(CONFIG_SIZE)
        assert config == bytes([ConfigSelect.EV_BITS, EventType.KEY]).ljust(CONFIG_SIZE, b"\0")
        await front.set_config(0, bytes([ConfigSelect.ID_NAME, 0]))
        assert b"keyboard" in await front.get_config(CONFIG_SIZE)
    assert "the guest's driver is told of nothing" in caplog.text


def test_event_that_is_none_is_refused_to_who_posts_it() -> None:
    reports = Reports()
    with pytest.raises(LocalProtocolError, match="does not fit into an event"):
        reports.post([Event(EventType.KEY, 1 << 16, 1)])
    assert len(reports) == 0


class OwnScript:
    """Steps of which one is refused, and one fails."""

    def __init__(self, keyboard: OwnKeyboard, done: list[int]) -> None:
        self.keyboard = keyboard
        self.done = done

    async def steps(self) -> AsyncGenerator[Step, None]:
        async def note() -> None:
            self.done.append(len(self.done))

        async def refuse() -> None:
            raise ScriptError("not so")

        for line, action in enumerate([note, refuse, note, self.keyboard.play, note], 1):
            yield Step(line, action)

    def close(self) -> None:
        pass


async def test_script_ends_at_the_step_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    keyboard, done = OwnKeyboard(), list[int]()
    keyboard.reports.ready.set()
    player = Player(OwnScript(keyboard, done), InputDevices([keyboard]))
    await player.run()
    assert done == [0, 1]
    assert "line 4 of the script failed: it ends here. This is logged once." in caplog.messages
    assert tracebacks(caplog) == 1

"""Host sides of users' own go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.vhost_user.devices.console.driver import driving
from vhost_user.devices.console.descriptions import PortDescription
from vhost_user.devices.console.device import Console

if TYPE_CHECKING:
    import pytest

    from vhost_user.devices.console.port import ConsolePort
from tests.vhost_user.devices.own_code import SECONDS, Mistake


class OwnHost:
    """A host's end that fails as soon as it is given something."""

    async def run(self, port: ConsolePort) -> None:
        port.host_opened()
        await port.until_output()
        raise Mistake("in run")

    def hang_up(self) -> bool:
        return False

    def close(self) -> None:
        raise Mistake("in close")


class OwnPort(PortDescription):
    """A port with that at its end."""

    def open(self) -> OwnHost:
        return OwnHost()


async def test_host_side_that_fails_is_closed_and_the_other_ports_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Console() as console:
        console.plug(1, OwnPort("own"))
        other = console.add_port("other")
        async with driving(console) as driver:
            await driver.begin()
            for number in (1, 2):
                await driver.start_port(number)
            own = console.ports["own"]
            with own.events() as events:
                await driver.set_up(1, 2)
                await driver.set_up(2, 1)
                await driver.open(1)
                await driver.send(1, b"hello")
                with trio.fail_after(SECONDS):
                    while own.port.state.host_open:
                        assert (await anext(events)).name in {"guest", "host"}
                await driver.open(2)
                await driver.send(2, b"hello")
                assert await other.expect("hello") == "hello"
    assert "the host's end of port own failed: it is closed. This is logged once." in caplog.messages
    assert "Mistake: in run" in caplog.text
    assert "Mistake: in close" in caplog.text

"""The way from a device to its front-end, where none is connected, and where one is."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from protocol.vhost_user import BackendMessage, ConfigChange, Reply, SharedObjectAdd
from tests.vhost_user.echo import Echo
from vhost_user import FrontendError
from vhost_user.transport.frontend_link import FrontendLink

NAME = UUID(int=7)


class Recorder:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[BackendMessage] = []

    def notify(self, message: BackendMessage) -> None:
        self.sent.append(message)

    async def request(self, message: BackendMessage) -> Reply | None:
        self.sent.append(message)
        message.close()
        return None


async def test_without_a_front_end_requests_are_refused_and_their_descriptors_closed() -> None:
    link = FrontendLink()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FrontendError, match="no front-end is connected"):
        await link.map_shared_memory(0, 0, size=4096)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    link.notify(ConfigChange())


async def test_requests_go_to_the_front_end_that_is_there() -> None:
    link, channel = FrontendLink(), Recorder()
    link.attach(channel)  # type: ignore[arg-type]  # it has all that is used
    await link.announce_object(NAME)
    link.notify(ConfigChange())
    assert channel.sent == [SharedObjectAdd(NAME), ConfigChange()]
    with pytest.raises(FrontendError, match=f"the front-end knows no shared object {NAME}"):
        await link.look_up_object(NAME)
    link.attach(None)
    with pytest.raises(FrontendError):
        await link.announce_object(NAME)


def test_each_device_has_a_link_of_its_own() -> None:
    one, other = Echo(), Echo()
    assert one.frontend is one.frontend
    assert one.frontend is not other.frontend

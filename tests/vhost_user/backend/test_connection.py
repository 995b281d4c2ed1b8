"""The log of a connection: messages are put into words only where a debug log is on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.vhost_user import describe
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import attached
from vhost_user.backend import connection
from vhost_user.transport import asker, channel

if TYPE_CHECKING:
    from protocol.vhost_user import Message
    from protocol.vhost_user.feature_names import FeatureNames


class Counted(Echo):
    """Counts how often the names of its features are asked for."""

    asked = 0

    @classmethod
    def feature_names(cls) -> FeatureNames:
        cls.asked += 1
        return super().feature_names()


@pytest.mark.parametrize("debug", [False, True])
async def test_messages_are_put_into_words_only_for_a_debug_log(
    debug: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = []

    def counted(message: Message) -> str:
        texts.append(text := describe(message))
        return text

    for module in (connection, asker, channel):
        monkeypatch.setattr(module, "describe", counted)
    monkeypatch.setattr(Counted, "asked", 0)
    caplog.set_level(logging.DEBUG if debug else logging.INFO, "vhost_user")
    device = Counted()
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await frontend.start()
        await frontend.open_channel(nursery)
        device.notify_config_changed()
        await frontend.until_asked()
        assert await queue.exchange([b"ping"], [8]) == [b"ping"]
        await queue.stop()
        nursery.cancel_scope.cancel()
    assert bool(texts) is debug
    assert bool(Counted.asked) is debug

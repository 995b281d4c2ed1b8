"""Methods that only some types of device have: what they offer, and what is refused without them."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.vhost_user import ProtocolFeature
from tests.vhost_user.echo import Echo
from tests.vhost_user.everything import Everything
from vhost_user.device.optional_methods import OPTIONAL_METHODS

OFFERED = (
    ProtocolFeature.RARP
    | ProtocolFeature.MTU
    | ProtocolFeature.CRYPTO_SESSION
    | ProtocolFeature.SHARED_OBJECT
)


def names(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


def test_device_offers_what_its_methods_do() -> None:
    assert not Echo().offered_protocol_features & OFFERED
    assert Everything().offered_protocol_features & OFFERED == OFFERED


@pytest.mark.parametrize("kind", OPTIONAL_METHODS)
def test_method_makes_a_device_of_the_kind(kind: type) -> None:
    methods: dict[str, Any] = {name: lambda *_: None for name in names(kind)}
    device: Any = type("Own", (Echo,), methods)()
    assert OPTIONAL_METHODS[kind] in device.offered_protocol_features
    assert isinstance(device, kind)
    assert not isinstance(Echo(), kind)


@pytest.mark.parametrize("kind", OPTIONAL_METHODS)
def test_method_that_would_never_be_awaited_is_refused(kind: type) -> None:
    async def method(*_: object) -> None: ...

    with pytest.raises(TypeError, match=f"Own.{names(kind)[0]}\\(\\) is async, but called without await"):
        type("Own", (Echo,), {names(kind)[0]: method})

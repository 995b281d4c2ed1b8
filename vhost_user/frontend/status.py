"""DriverStatus: a driver's progress, sent to a back-end that offers STATUS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import GetStatus, ProtocolFeature, SetStatus, Status
from protocol.virtio.features import DeviceStatus
from vhost_user.frontend.connection import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.vhost_user import Negotiation
    from vhost_user.frontend.connection import Ask

_STEPS = (
    DeviceStatus.ACKNOWLEDGE,
    DeviceStatus.DRIVER,
    DeviceStatus.FEATURES_OK,
    DeviceStatus.DRIVER_OK,
)
"""In the order in which a driver sets them (virtio 1.3 section 3.1.1)."""


class DriverStatus:
    """The device status field as the driver sets it. Without STATUS nothing is sent."""

    def __init__(self, ask: Ask, negotiation: Callable[[], Negotiation]) -> None:
        self._ask = ask
        self._negotiation = negotiation
        self._value = DeviceStatus.RESET

    async def reach(self, step: DeviceStatus) -> None:
        """Set the bit `step`, those before it first. Raises BackendError where FEATURES_OK does not stay."""
        for each in _STEPS[: _STEPS.index(step) + 1]:
            if each not in self._value and self._is_told:
                await self._set(self._value | each)
                if each is DeviceStatus.FEATURES_OK:
                    await self._check_features()

    async def reset(self) -> None:
        """Set 0, if anything was set."""
        if self._value:
            await self._set(DeviceStatus.RESET)

    @property
    def _is_told(self) -> bool:
        return ProtocolFeature.STATUS in self._negotiation().protocol_features

    async def _set(self, value: DeviceStatus) -> None:
        self._value = value
        await self._ask(SetStatus(value))

    async def _check_features(self) -> None:
        """A device that does not accept the features together takes the bit back (section 2.2.2)."""
        reply = await self._ask(GetStatus())
        assert isinstance(reply, Status)
        if DeviceStatus.FEATURES_OK not in reply.status:
            features = self._negotiation().features
            raise BackendError(f"the back-end does not accept the features {features} together")

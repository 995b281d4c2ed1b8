"""A connection: the requests of one front-end, handled one after the other."""

# How it works: of the tasks of a connection, one answers its requests, one runs the device, and each ring
# that is served and each channel has one (`state` says which). All are in one nursery, so an exception of
# the device ends the connection, and so does nothing that a front-end does wrong: it ends the first task at
# worst. The rings are stopped then, as by GET_VRING_BASE, the other tasks are cancelled, and the state closes
# its descriptors and unmaps the guest's memory. The stream is closed last. If the process dies instead, the
# kernel closes everything; the front-end connects to the next one, which begins with what is in the in-flight
# buffer and in the rings.

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from protocol.errors import RemoteProtocolError
from protocol.io import exhaustion
from protocol.vhost_user import FrontendRequest, Refused, describe
from protocol.vhost_user.validation import RefusedError
from vhost_user.backend.handlers import HANDLERS
from vhost_user.backend.state import ConnectionState
from vhost_user.memory.mapping import MappingError
from vhost_user.memory.regions import BadRegionError
from vhost_user.transport.answerer import Answerer
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from protocol.io import FdStream
    from protocol.vhost_user import Request
    from vhost_user.device import VirtioDevice
    from vhost_user.transport.answerer import Answer

_log = logging.getLogger("vhost_user")


async def serve_connection(device: VirtioDevice, stream: FdStream) -> None:
    """Serve `device` to the front-end at the other end of `stream`, until it leaves; close `stream`.

    What the front-end does wrong is logged, and ends the connection at worst. Raises what the
    device raises, within an ExceptionGroup.
    """
    with stream, contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            state = ConnectionState(device, nursery, stream.peer_credentials().pid)
            stack.enter_context(contextlib.closing(state))
            device.reset()
            nursery.start_soon(device.run, name="device")
            try:
                await Answerer(stream, state.session, _FrontendRequests(state)).run()
            except (RemoteProtocolError, ConnectionLostError) as error:
                _log.error("the connection is given up: %s", error)
            await state.stop_vrings()
            nursery.cancel_scope.cancel()


class _FrontendRequests:
    """Does what a front-end asks for, by the table of handlers."""

    def __init__(self, state: ConnectionState) -> None:
        self._state = state

    async def handle(self, request: Request) -> Answer:
        """Call the request's handler. Raises RefusedError for faults of the front-end and the host."""
        if _log.isEnabledFor(logging.DEBUG):
            names = self._state.device.feature_names()
            _log.debug("< %s", names.explain_message(describe(request), request))
        try:
            return await HANDLERS[type(request)](self._state, request)
        except (BadRegionError, MappingError) as error:
            raise RefusedError(str(error)) from None
        except OSError as error:
            if not exhaustion.is_exhausted(error):
                raise
            raise RefusedError(exhaustion.cause_and_remedy(error)) from None

    def log_refusal(self, request: Request | Refused, reason: str) -> None:
        """Log why, and what the user can do about it where that is known."""
        remedy = ""
        if isinstance(request, Refused) and request.number == FrontendRequest.SET_FEATURES:
            reason = self._state.device.feature_names().explain(reason)
            if "ACCESS_PLATFORM" in reason:
                remedy = "; start the back-end with --iommu, or QEMU's device without iommu_platform=on"
        _log.error("%s is refused: %s%s", request.label, reason, remedy)

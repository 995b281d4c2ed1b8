"""A connection: the requests of one front-end received, handled and answered, one after the other."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from protocol.errors import RemoteProtocolError
from protocol.io import exhaustion
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import FrontendRequest, Refused, Reply, describe
from protocol.vhost_user.validation import RefusedError
from vhost_user.backend.handlers import HANDLERS
from vhost_user.backend.state import ConnectionState
from vhost_user.memory.mapping import MappingError
from vhost_user.memory.regions import BadRegionError

if TYPE_CHECKING:
    from protocol.io import FdStream
    from protocol.vhost_user import BackendSession, Request
    from vhost_user.backend.handlers import Answer
    from vhost_user.device import VirtioDevice

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
            await _serve_requests(state, stream)
            await state.stop_vrings()
            nursery.cancel_scope.cancel()


async def _serve_requests(state: ConnectionState, stream: FdStream) -> None:
    while (requests := await _receive(state.session, stream)) is not None:
        for request in requests:
            ok, answer = await _handle(state, request)
            if not await _answer(state.session, stream, request, ok, answer):
                return


async def _receive(session: BackendSession, stream: FdStream) -> list[Request | Refused] | None:
    """Return the request that the next read completes, if any; None at the end of the connection."""
    try:
        data, fds = await stream.receive(session.bytes_wanted, MAX_FDS)
        requests = session.receive(data, fds)
    except (RemoteProtocolError, OSError) as error:
        _log.error("the connection is given up: %s", str(error))
        return None
    return requests if data else None


async def _handle(state: ConnectionState, request: Request | Refused) -> tuple[bool, Answer]:
    """Do what is asked for; return whether it was done, and what to answer."""
    names = state.device.feature_names()
    if isinstance(request, Refused):
        text = names.explain(str(request)) if request.number == FrontendRequest.SET_FEATURES else str(request)
        _log.error("%s%s", text, _remedy(request))
        return False, None
    _log.debug("< %s", names.explain_message(describe(request), request))
    try:
        return True, await HANDLERS[type(request)](state, request)
    except (RefusedError, BadRegionError, MappingError) as error:
        _log.error("%s is refused: %s", request.label, str(error))  # no traceback is kept
        return False, None
    except OSError as error:
        if not exhaustion.is_exhausted(error):
            raise
        _log.error("%s is refused: %s", request.label, exhaustion.cause_and_remedy(error))
        return False, None
    finally:
        request.close()


def _remedy(request: Refused) -> str:
    """Return what the user can do about a request that is refused, where that is known."""
    if request.number == FrontendRequest.SET_FEATURES and "ACCESS_PLATFORM" in request.reason:
        return "; start the back-end with --iommu, or QEMU's device without iommu_platform=on"
    return ""


async def _answer(
    session: BackendSession, stream: FdStream, request: Request | Refused, ok: bool, answer: Answer
) -> bool:
    """Send the reply, if one is owed. Returns False where the connection is lost."""
    try:
        if answer is None or isinstance(request, Refused):
            packet = session.acknowledge(request, ok)
        else:
            packet = session.reply(request, answer)
        if packet is not None:
            await stream.send(*packet)
    except OSError as error:
        _log.error("the connection is lost: %s", str(error))
        return False
    finally:
        if isinstance(answer, Reply):
            answer.close()
    return True

"""StateTransfer: a device's state on its way to another host."""

# How it works: SET_DEVICE_STATE_FD makes a transfer and a task that runs it, while all queues are stopped.
# The front-end reads or writes the other end meanwhile, and asks for the result with CHECK_DEVICE_STATE,
# whose handler waits for the end of the task. The end of the stream is the end of the state: a back-end
# that dies on the way leaves a short state, and the front-end, which gets no good result, drops it.
# Loading changes the device only when the whole state has come.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import TransferDirection
from protocol.vhost_user.validation import RefusedError

if TYPE_CHECKING:
    from protocol.fds import OwnedFd
    from vhost_user.device import VirtioDevice

MAX_STATE = 1 << 30
"""Most bytes of a state that is loaded."""

_log = logging.getLogger("vhost_user")


class StateTransfer:
    """Saves or loads a device's state over a pipe or socket of the front-end."""

    def __init__(self, device: VirtioDevice, direction: TransferDirection, fd: OwnedFd) -> None:
        """Take ownership of `fd`, which `run()` closes, or `close()`."""
        self._device = device
        self._direction = direction
        self._stream = trio.lowlevel.FdStream(fd.detach())
        self._ended = trio.Event()
        self._error = "it has not ended"

    async def run(self) -> None:
        """Transfer the state, and close the stream: that is the end of a saved state."""
        try:
            async with self._stream:
                if self._direction is TransferDirection.SAVE:
                    await self._stream.send_all(self._device.save_state())
                else:
                    self._device.load_state(await self._receive())
            self._error = ""
        except (OSError, trio.BrokenResourceError, RefusedError) as error:
            self._error = str(error.__cause__ or error)
            _log.error("the device's state is not transferred: %s", self._error)
        finally:
            self._ended.set()

    async def result(self) -> None:
        """Wait for the end. Raises RefusedError where the state was not transferred."""
        await self._ended.wait()
        if self._error:
            raise RefusedError(f"the device's state was not transferred: {self._error}")

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    async def _receive(self) -> bytes:
        state = bytearray()
        async for part in self._stream:
            state += part
            if len(state) > MAX_STATE:
                raise RefusedError(f"it has more than {MAX_STATE} bytes")
        return bytes(state)

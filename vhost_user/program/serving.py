"""The serving of devices, each on its socket, and of the control socket."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from protocol.io.background import unwrap_group
from protocol.program import notify
from protocol.program.access import SocketAccess, access_from
from protocol.program.command_line import UserError
from protocol.program.socket_errors import cannot_connect, cannot_listen
from vhost_user.backend import serve
from vhost_user.simulation.control_server import serve_control

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhost_user.device import VirtioDevice

_log = logging.getLogger("vhost_user")


@dataclass(frozen=True)
class Served:
    """A device, and one of the three places that `serve()` takes for its front-end."""

    device: VirtioDevice
    socket_path: str | None = None
    fd: int | None = None
    connect: str | None = None
    access: SocketAccess = field(default_factory=SocketAccess)
    """The owner and the mode of `socket_path`."""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve the device, until the front-end of a connected socket has left. Raises UserError."""
        ready = _Ready(task_status)
        try:
            await serve(
                self.device,
                socket_path=self.socket_path,
                fd=self.fd,
                connect=self.connect,
                **self.access,
                task_status=ready,
            )
        except (OSError, ValueError) as error:
            if ready.is_set:
                raise
            raise self._user_error(error) from None

    def _user_error(self, error: OSError | ValueError) -> UserError:
        if isinstance(error, ValueError):
            return UserError(f"{error}; pass --fd a UNIX stream socket")
        if self.connect is not None:
            return cannot_connect(self.connect, error)
        return cannot_listen(self.socket_path or "", error)


class _Ready(trio.TaskStatus[None]):
    """Reports that a device is ready, and keeps that it is."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self.is_set = False
        self._status = status

    def started(self, value: None = None) -> None:
        self.is_set = True
        self._status.started()


def pair(devices: Sequence[VirtioDevice], paths: Sequence[str], options: argparse.Namespace) -> list[Served]:
    """Return each device with its front-end's place: one of `paths`, or that of --fd or --connect."""
    if paths:
        access = access_from(options)
        return [Served(device, path, access=access) for device, path in zip(devices, paths, strict=True)]
    (device,) = devices
    return [Served(device, fd=options.fd, connect=options.connect)]


async def serve_all(served: Sequence[Served], control: str | None) -> Exception | None:
    """Serve until all have ended; return the error, if any. It is a UserError where the user can remove it.

    `control` is the path of a control socket for what is simulated behind them.
    """
    try:
        async with trio.open_nursery() as nursery:
            if control is not None:
                await nursery.start(_serve_control, served[0].device, control)
            async with trio.open_nursery() as devices:
                for one in served:
                    await devices.start(one.serve, name=one.device.name)
                    if one.socket_path is not None:
                        _log.info("listening on %s", one.socket_path)
                notify(f"READY=1\nMAINPID={os.getpid()}")
            nursery.cancel_scope.cancel()
    except Exception as error:
        return unwrap_group(error)
    return None


async def _serve_control(device: VirtioDevice, path: str, *, task_status: trio.TaskStatus[None]) -> None:
    if device.simulation is None:
        raise UserError(f"nothing is simulated behind {device.name} to be changed; leave out --control")
    try:
        await serve_control(device.simulation, path, task_status=task_status)
    except OSError as error:
        raise cannot_listen(path, error) from None

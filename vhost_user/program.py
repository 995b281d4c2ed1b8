"""A device as a program: its command line, its signals, its errors of one line."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.io import SocketInUseError, logs, notify
from protocol.io.command_line import EMPTY, UserError, fail, print_result, raise_open_files_limit
from protocol.virtio.ids import DeviceId
from vhost_user.options import PRINT_CAPABILITIES, parse_options
from vhost_user.server import serve
from vhost_user.socket_errors import cause_and_remedy

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence

    from vhost_user.device import VirtioDevice

_STOP_SECONDS = 1.0
"""How long the end may take before the log says why it does."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_TYPES = {DeviceId.NINEP: "9p", DeviceId.RPROC_SERIAL: "rproc-serial"}

_log = logging.getLogger("vhost_user")


def run_device(device: type[VirtioDevice], argv: Sequence[str], program: str) -> int:
    """Run a device with the command line `argv`; return the exit code."""
    if PRINT_CAPABILITIES in argv:  # whatever else is there, or is missing
        return print_result(program, json.dumps(capabilities(device)))
    options = parse_options(device, program, argv)
    try:
        if options.print_qemu_args:
            return print_result(program, qemu_args(device, options))
        logs.configure(program, style=options.log_format, verbose=options.verbose)
        raise_open_files_limit()
        with _make(device, options) as made:
            if options.iommu:
                made.use_iommu()
            for feature in options.without:
                made.withhold(feature)
            return trio.run(_main, made, options)
    except UserError as error:
        return fail(program, error)
    except KeyboardInterrupt:
        return 0  # before the loop could take the signal


def _make(device: type[VirtioDevice], options: argparse.Namespace) -> VirtioDevice:
    """Return the device that the command line describes. Raises UserError."""
    try:
        return device.from_options(options)
    except OSError as error:
        raise UserError(f"cannot start {device.__name__}: {error}") from error


def capabilities(device: type[VirtioDevice]) -> dict[str, object]:
    """Return what QEMU's docs/interop/vhost-user.json has back-end programs say of themselves."""
    return {"type": backend_type(device), "features": list(device.capabilities)}


def backend_type(device: type[VirtioDevice]) -> str:
    """Return the name of the device's type in QEMU's docs/interop/vhost-user.json."""
    return _TYPES.get(device.device_id, device.device_id.name.lower().partition("_")[0])


def qemu_args(device: type[VirtioDevice], options: argparse.Namespace) -> str:
    """Return the QEMU options for a guest with this device, quoted for a shell. Raises UserError."""
    path = options.socket_path or options.connect
    if path is None:
        raise UserError("--print-qemu-args needs the path of the socket; give --socket-path or --connect")
    quoted = str(Path(path).absolute()).replace(",", ",,")  # QEMU's own quoting of a comma
    server = ",server=on" if options.connect else ""
    iommu = ",iommu_platform=on,ats=on" if options.iommu else ""
    return " ".join(
        [
            "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem",
            "-chardev",
            shlex.quote(f"socket,id={device.name}0,path={quoted}{server}"),
            f"-device {device.qemu_device(options)}{iommu},chardev={device.name}0",
        ]
    )


async def _main(device: VirtioDevice, options: argparse.Namespace) -> int:
    error: Exception | None = None
    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            serving = trio.CancelScope()
            nursery.start_soon(_stop_on_signal, signals, serving)
            with serving:
                error = await _serve(device, options)
            nursery.cancel_scope.cancel()
    if isinstance(error, UserError):
        return fail(options.program, error)
    if error is not None:
        _log.error("the device failed", exc_info=error)
        return 1
    return 0


async def _stop_on_signal(signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
    """End `serving` at the first signal, and the program, however busy it is, at the second."""
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if serving.cancel_called:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            notify("STOPPING=1")
            serving.cancel()
            nursery.start_soon(_tell_what_is_waited_for)


async def _tell_what_is_waited_for() -> None:
    await trio.sleep(_STOP_SECONDS)
    _log.warning("requests that cannot be cancelled are waited for; a second signal ends the program at once")


async def _serve(device: VirtioDevice, options: argparse.Namespace) -> Exception | None:
    """Serve until the front-end of a connected socket has left; return what went wrong, if anything."""
    ready = _Ready(options)
    path, fd, connect = options.socket_path, options.fd, options.connect
    try:
        await serve(device, socket_path=path, fd=fd, connect=connect, task_status=ready)
    except (OSError, ValueError) as error:
        return error if ready.is_set else _user_error(options, error)
    except Exception as error:
        return error
    return None


class _Ready(trio.TaskStatus[None]):
    """Tells whoever waits for it that the front-end can connect now."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.is_set = False
        self._options = options

    def started(self, value: None = None) -> None:
        self.is_set = True
        if self._options.socket_path is not None:
            _log.info("listening on %s", self._options.socket_path)
        notify(f"READY=1\nMAINPID={os.getpid()}")


def _user_error(options: argparse.Namespace, error: OSError | ValueError) -> UserError:
    if isinstance(error, ValueError):
        return UserError(f"{error}; pass --fd a UNIX stream socket")
    path = options.socket_path
    if isinstance(error, SocketInUseError):
        return UserError(f"socket {path} is in use by another program; stop it or choose another path")
    if options.connect is not None:
        return UserError(f"cannot connect to {options.connect or EMPTY}: {cause_and_remedy(error)}")
    return UserError(f"cannot listen on {path or EMPTY}: {cause_and_remedy(error)}")

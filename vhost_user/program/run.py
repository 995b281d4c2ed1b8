"""A running device program: command line, signals, errors of one line."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import signal
from typing import TYPE_CHECKING

import trio

from protocol.io import exhaustion
from protocol.io.background import only_exit
from protocol.program import notify, signals
from protocol.program.command_line import (
    UserError,
    check_descriptors,
    configure_log,
    fail_to_start,
    print_result,
    raise_open_files_limit,
)
from protocol.virtio.ids import DeviceId
from vhost_user.device_program import DeviceProgram
from vhost_user.own_code.class_loading import code_of_others
from vhost_user.own_code.containment import in_one_line
from vhost_user.program import serving
from vhost_user.program.installed import program_of
from vhost_user.program.options import PRINT_CAPABILITIES, parse_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhost_user.device import VirtioDevice

_STOP_SECONDS = 1.0
"""The time, in seconds, until the log says why the end takes longer."""

_OBJECTS_BEFORE_COLLECTION = 20_000
"""The number of new objects after which Python searches for garbage that refers to itself. Devices make
hardly any. Python's own 700 are a few dozen requests: the search would take a third of a card's time."""

_LEAST_DESCRIPTORS = 16
"""The number of descriptors that must be free: for the loop, the front-end, and a guest with one queue."""

_TYPES = {DeviceId.NINEP: "9p", DeviceId.RPROC_SERIAL: "rproc-serial"}

_log = logging.getLogger("vhost_user")


def run_device(device: type[VirtioDevice] | DeviceProgram, argv: Sequence[str], program: str) -> int:
    """Run a device with the command line `argv`, as the command `program`; return the exit code.

    `device` is its class, or its DeviceProgram.
    """
    try:
        described = device if isinstance(device, DeviceProgram) else program_of(device)
        if PRINT_CAPABILITIES in argv:  # whatever else is given or missing
            return print_result(program, json.dumps(capabilities(described)))
        return _run(described, parse_options(described, program, argv))
    except UserError as error:
        return fail_to_start(program, error)
    except KeyboardInterrupt:
        return 0  # before the loop could take the signal


def _run(program: DeviceProgram, options: argparse.Namespace) -> int:
    if options.print_qemu_args or options.print_libvirt_xml:
        return print_result(options.program, _what_to_paste(program, options))
    configure_log(options.program, options)
    raise_open_files_limit()
    check_descriptors("a guest", _LEAST_DESCRIPTORS)
    try:
        with contextlib.ExitStack() as stack:
            received = stack.enter_context(signals.ServiceSignals())
            # From here on, a signal has to clean up.
            made = [stack.enter_context(one) for one in _make(program, options)]
            for one in made:
                _adapt(one, options)
            gc.freeze()  # the objects until here stay
            gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)
            served = serving.pair(made, program.socket_paths(options), options)
            return trio.run(_main, served, options, received)
    except BaseExceptionGroup as group:
        if (leave := only_exit(group)) is None:
            raise
        raise leave from None  # a device of the user's ends the program


def _make(program: DeviceProgram, options: argparse.Namespace) -> list[VirtioDevice]:
    """Return the devices that the command line describes. Raises UserError."""
    name = program.device.__name__
    try:
        return list(program.make(options))
    except UserError:
        raise
    except OSError as error:
        reason = exhaustion.cause_and_remedy(error) if exhaustion.is_exhausted(error) else error
        raise UserError(f"cannot start {name}: {reason}") from error
    except Exception as error:  # a mistake in a device of the user's
        raise UserError(f"cannot start {name}: {in_one_line(error)}") from error


def _adapt(device: VirtioDevice, options: argparse.Namespace) -> None:
    """Change the features that a device offers as the options say."""
    if options.iommu:
        device.use_iommu()
    for feature in options.without:
        device.withhold(feature)


def _what_to_paste(program: DeviceProgram, options: argparse.Namespace) -> str:
    """Return what --print-qemu-args and --print-libvirt-xml print. Raises UserError."""
    with code_of_others(f"{program.name} cannot say how it is attached"):
        texts = [program.qemu_args(options)] if options.print_qemu_args else []
        if options.print_libvirt_xml:
            texts.append(program.libvirt_xml(options))
        return "\n".join(texts)


def capabilities(program: DeviceProgram) -> dict[str, object]:
    """Return the capabilities of a back-end program, as QEMU's docs/interop/vhost-user.json has them."""
    return {"type": backend_type(program.device_id), "features": [*map(str, program.capabilities)]}


def backend_type(device_id: DeviceId) -> str:
    """Return the name of a type of device in QEMU's docs/interop/vhost-user.json."""
    name = device_id.name.lower()
    if device_id not in list(DeviceId):  # a number that has no name, in QEMU's file either
        return name.replace("_", "-")
    return _TYPES.get(device_id, name.partition("_")[0])


async def _main(
    served: list[serving.Served], options: argparse.Namespace, received: signals.ServiceSignals
) -> int:
    error: Exception | None = None
    came: list[int] = []
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(_stop_on_signal, received, scope, came)
        with scope:
            error = await serving.serve_all(served, options.control)
        nursery.cancel_scope.cancel()
    if isinstance(error, UserError):
        return fail_to_start(options.program, error)
    if error is not None:
        _log.error("the device failed", exc_info=error)
        return 1
    _log.info("ended by %s", signal.Signals(came[0]).name if came else "the front-end's leave")
    return 0


async def _stop_on_signal(
    received: signals.ServiceSignals, serving: trio.CancelScope, came: list[int]
) -> None:
    """End `serving` at a signal, and if that takes long, the program at another one, however busy it is.

    The first one is added to `came`. Signals within the first second count as the same request to end.
    """
    came.append(await received.wait())
    notify("STOPPING=1")
    serving.cancel()
    await trio.sleep(_STOP_SECONDS)
    while received.take() is not None:
        pass
    _log.warning("requests that cannot be cancelled are waited for; another signal ends the program at once")
    signals.die_of(await received.wait())

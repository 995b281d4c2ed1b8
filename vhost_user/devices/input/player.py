"""Plays a script on simulated input devices: a whole file, or the lines of a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.fds import OwnedFd
from protocol.program.command_line import UserError, print_result
from vhost_user.devices.input.script import Parser, ScriptError
from vhost_user.own_code.containment import Containment
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from vhost_user.devices.input.script import Step
    from vhost_user.devices.input.simulation import SimulatedInput

STANDARD_INPUT = "-"
MAX_LINE = 65536
"""Most bytes of a line that comes from a pipe."""

_log = logging.getLogger("vhost_user.input")


class InputDevices(Simulation):
    """The simulated input devices of one program, each a part by the name of its kind."""

    def __init__(self, devices: Sequence[SimulatedInput]) -> None:
        super().__init__()
        self.devices = {device.kind: device for device in devices}
        for name, device in self.devices.items():
            self.add_part(name, device)
        self._parser = Parser(self.devices)

    @property
    def parser(self) -> Parser:
        """What understands scripts for these devices."""
        return self._parser

    @call
    async def run(self, script: str) -> None:
        """Run a script, of one line or several; return when all of it is done."""
        steps = self._parser.parse(script)
        began = trio.current_time()
        for step in steps:
            await step.run(began)

    async def ready(self) -> None:
        """Wait until the drivers of all devices are ready for events."""
        for name, device in self.devices.items():
            if not device.reports.ready.is_set():
                _log.info("the script waits for a driver of the %s", name)
                await device.ready()


class Script(Protocol):
    """Steps to be done one after the other."""

    def steps(self) -> AsyncGenerator[Step, None]:
        """Iterate over them; they may be long in coming."""

    def close(self) -> None:
        """Close what they are read from."""


class Player:
    """Does what a script says, from when all drivers are ready.

    A step that a device refuses is logged and left out; one whose device fails is the last.
    """

    def __init__(self, script: Script, devices: InputDevices) -> None:
        """Own `script` from now on."""
        self._script = script
        self._devices = devices
        self._own = Containment(_log)

    async def run(self) -> None:
        """Play it once, to its end."""
        await self._devices.ready()
        _log.info("the script begins")
        began = trio.current_time()
        async with contextlib.aclosing(self._script.steps()) as steps:
            async for step in steps:
                with self._own.code(
                    f"line {step.line} of the script", "it ends here", expected=ScriptError
                ) as attempt:
                    await step.run(began)
                if attempt.refusal is not None:
                    _log.error("the script's %s", attempt.refusal)
                elif attempt.failed:
                    return
        _log.info("the script is at its end")

    def close(self) -> None:
        """Close the script."""
        self._script.close()


class Printer:
    """Prints the devices' events, as `vhost-user control PATH --events` does."""

    def __init__(self, devices: InputDevices) -> None:
        self._devices = devices

    async def run(self) -> None:
        """Print them as they come, as long as somebody reads."""
        with self._devices.events() as events:
            async for event in events:
                line = json.dumps({"event": event.name, "on": event.on, "data": dict(event.data)})
                if print_result("vhost-user-input", line):
                    return

    def close(self) -> None:
        """Do nothing."""


def open_script(path: str, parser: Parser) -> Script:
    """Return the script that is in a file, or comes from a pipe; "-" is standard input. The caller closes it.

    Raises UserError where it cannot be read, or where a file has a line that is wrong.
    """
    name = "standard input" if path == STANDARD_INPUT else path
    try:
        fd = _open(path)
        kind = os.fstat(fd.fileno()).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            return _LinesAsTheyCome(fd, parser)
        with fd, open(fd.fileno(), encoding="utf-8", newline="\n", closefd=False) as file:
            return _WholeScript(parser.parse(file.read()))
    except OSError as error:
        raise UserError(f"cannot read the script {name}: {error.strerror}; give another file") from None
    except UnicodeDecodeError:
        raise UserError(f"the script {name} is not UTF-8 text; save it as UTF-8") from None
    except ScriptError as error:
        raise UserError(f"{name}, {error}") from None


def _open(path: str) -> OwnedFd:
    if path == STANDARD_INPUT:
        return OwnedFd(os.dup(0))
    # A FIFO that is also open for writing never ends: one writer after the other can have its say.
    mode = os.O_RDWR if Path(path).is_fifo() else os.O_RDONLY
    return OwnedFd(os.open(path, mode | os.O_CLOEXEC))


class _WholeScript:
    """A script that has been read."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    async def steps(self) -> AsyncGenerator[Step, None]:
        for step in self._steps:
            yield step

    def close(self) -> None:
        pass


class _LinesAsTheyCome:
    """A script whose lines come from a pipe or a terminal. One that is wrong is logged, and left out."""

    def __init__(self, fd: OwnedFd, parser: Parser) -> None:
        self._fd = fd
        self._parser = parser
        self._number = 0

    def close(self) -> None:
        self._fd.close()

    async def steps(self) -> AsyncGenerator[Step, None]:
        rest = b""
        while data := await self._read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if (step := self._step(line)) is not None:
                    yield step
            if len(rest) > MAX_LINE:
                _log.error("line %d is longer than %d bytes; the script ends here", self._number, MAX_LINE)
                return
        if (step := self._step(rest)) is not None:
            yield step

    async def _read(self) -> bytes:
        """Return what has come, at least a byte; nothing at the end. Leaves the descriptor's flags alone."""
        try:
            await trio.lowlevel.wait_readable(self._fd.fileno())
            return os.read(self._fd.fileno(), MAX_LINE)
        except OSError as error:
            _log.error("cannot read the script any more: %s", error.strerror)
            return b""

    def _step(self, line: bytes) -> Step | None:
        self._number += 1
        try:
            return self._parser.parse_line(self._number, line.decode())
        except UnicodeDecodeError:
            _log.error("the script's line %d is not UTF-8 text", self._number)
        except ScriptError as error:
            _log.error("the script's %s", error)
        return None

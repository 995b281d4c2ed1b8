"""GPIO lines of the host, through libgpiod's own Python package."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from protocol.io.threads import run_in_thread
from protocol.program.command_line import UserError
from protocol.program.warnings import OnceLogger
from protocol.virtio.gpio import Direction, IrqType
from vhost_user.devices.gpio.chip import Chip, LineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import gpiod

CONSUMER = "qemu-companion"
"""How `gpioinfo` on the host shows who uses a line."""

_MISSING = "lines of the host need the package gpiod, version 2: pip install 'qemu-companion[gpio]'"

_T = TypeVar("_T")

_log = logging.getLogger("vhost_user.gpio")


def open_chip(name: str, lines: Sequence[int] = ()) -> HostChip:
    """Return `lines` of a chip of the host, all by default. `name` is a number, a name or a path.

    Whoever gets it closes it. Raises UserError.
    """
    path = _path(name)
    try:
        import gpiod
    except ImportError:
        raise UserError(_MISSING) from None
    if not hasattr(gpiod, "LineSettings"):
        raise UserError(_MISSING)  # what Debian 12 calls so is version 1
    try:
        chip = gpiod.Chip(str(path))
    except OSError as error:
        raise UserError(f"cannot open the GPIO chip {path}: {_cause_and_remedy(error, path)}") from None
    try:
        return HostChip(chip, lines)
    except BaseException:
        chip.close()
        raise


def _path(name: str) -> Path:
    """Return where a chip is that goes by a number, a name or a path."""
    if name.isdecimal():
        return Path(f"/dev/gpiochip{name}")
    return Path(name) if "/" in name else Path("/dev", name)


def _cause_and_remedy(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT:
        return "there is none; 'gpiodetect' lists those that there are"
    if error.errno in {errno.ENODEV, errno.ENOTTY, errno.ENOTSUP, errno.EINVAL}:
        return "it is something else; 'gpiodetect' lists the chips that there are"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{error.strerror}; join the group that 'ls -l {path}' shows, or run as root"
    return f"{error.strerror}"


class _Line:
    """A line as the guest uses it."""

    def __init__(self) -> None:
        self.direction = Direction.NONE
        self.kind = IrqType.NONE
        self.output = 0
        self.request: gpiod.LineRequest | None = None


class HostChip(Chip):
    """Lines of a chip of the host. Each is requested from the kernel while the guest uses it.

    What the kernel is asked for may take a while, for a line at the end of a bus: threads wait for it.
    """

    def __init__(self, chip: gpiod.Chip, lines: Sequence[int] = ()) -> None:
        """Own `chip` from now on. Raises UserError for a line that it does not have, OSError."""
        import gpiod

        self._gpiod = gpiod
        self._chip = chip
        self._path = chip.path
        count = chip.get_info().num_lines
        self._offsets = list(lines) or list(range(count))
        if missing := [offset for offset in self._offsets if offset >= count]:
            raise UserError(f"{self._path} has no line {missing[0]}; its lines are 0 to {count - 1}")
        self.names = self._names()
        self._lines = [_Line() for _ in self._offsets]
        self._lock = trio.Lock()
        self._no_thread = OnceLogger(_log, 1)
        self._given_back: list[gpiod.LineRequest] = []
        self._new: trio.MemorySendChannel[int]
        self._new, self._watched = trio.open_memory_channel[int](math.inf)

    def close(self) -> None:
        """Give all lines back, and close the chip."""
        for line in self._lines:
            if line.request is not None:
                line.request.release()  # outside of the loop
        self._chip.close()

    def reset(self) -> None:
        """Give all lines back to the kernel."""
        for line in range(len(self._lines)):
            self._release(line)

    async def run(self) -> None:
        """Signal what the kernel says of lines that are watched."""
        async with trio.open_nursery() as nursery:
            async for number in self._watched:
                nursery.start_soon(self._follow, number)

    async def direction(self, line: int) -> Direction:
        """Return what the guest has set; for a line that it does not use, what the hardware is at."""
        if self._lines[line].direction is not Direction.NONE:
            return self._lines[line].direction
        info = await self._call(line, self._chip.get_line_info, self._offsets[line])
        return Direction.OUT if info.direction is self._gpiod.line.Direction.OUTPUT else Direction.IN

    async def set_direction(self, line: int, direction: Direction) -> None:
        """Request the line from the kernel, or give it back."""
        state = self._lines[line]
        if direction is Direction.NONE:
            self._release(line)
            return
        await self._configure(line, direction, state.kind)
        state.direction = direction

    async def value(self, line: int) -> int:
        """Return the level of a line. Raises LineError for one whose direction is not set."""
        request = self._lines[line].request
        if request is None:
            raise LineError(f"the value of line {line}, whose direction is not set")
        value = await self._call(line, request.get_value, self._offsets[line])
        return int(value is self._gpiod.line.Value.ACTIVE)

    async def set_value(self, line: int, value: int) -> None:
        """Set an output, or note what it is to be once it is one."""
        state = self._lines[line]
        state.output = value
        if state.request is not None and state.direction is Direction.OUT:
            await self._call(line, state.request.set_value, self._offsets[line], self._value(value))

    async def watch(self, line: int, kind: IrqType) -> int:
        """Ask the kernel for edges; of both for an interrupt by level, which it does not have."""
        state = self._lines[line]
        if kind is not IrqType.NONE:
            await self._configure(line, Direction.IN, kind)
        elif state.direction is Direction.NONE:
            self._release(line)
        elif state.kind is not IrqType.NONE:
            await self._configure(line, state.direction, kind)
        state.kind = kind
        return 0 if kind is IrqType.NONE else await self.value(line)

    async def refresh(self, line: int) -> None:
        """Signal the level: the kernel may have told of a change that was not read yet."""
        with contextlib.suppress(LineError):  # then what was signalled last counts
            self.interrupts[line].signal(await self.value(line))

    async def _configure(self, line: int, direction: Direction, kind: IrqType) -> None:
        """Tell the kernel how the line is to be. Raises LineError."""
        module, offset, state = self._gpiod, self._offsets[line], self._lines[line]
        settings = module.LineSettings(
            direction=module.line.Direction.OUTPUT
            if direction is Direction.OUT
            else module.line.Direction.INPUT,
            edge_detection=getattr(module.line.Edge, _EDGES[kind]),
            output_value=self._value(state.output),
        )
        if state.request is not None:
            await self._call(line, state.request.reconfigure_lines, {offset: settings})
            return
        state.request = await self._call(line, self._chip.request_lines, {offset: settings}, CONSUMER)
        self._new.send_nowait(line)

    async def _call(self, line: int, function: Callable[..., _T], *arguments: object) -> _T:
        """Ask the kernel. Raises LineError where it refuses."""
        try:
            async with self._lock:
                try:
                    return await run_in_thread(function, *arguments, complain=self._complain_of_threads)
                finally:
                    while self._given_back:
                        self._given_back.pop().release()
        except self._gpiod.RequestReleasedError:
            raise LineError(f"line {line}, which was released meanwhile") from None
        except OSError as error:
            place = f"line {line}, which is {self._offsets[line]} of {self._path}"
            used = "; something else on the host uses it" if error.errno == errno.EBUSY else ""
            raise LineError(f"{place}: {error.strerror}{used}") from None

    def _complain_of_threads(self, reason: str) -> None:
        self._no_thread.warning(f"{self._path}: all else waits for each request: {reason}")

    def _release(self, line: int) -> None:
        """Give a line back to the kernel, once no thread can be using it; forget what the guest has set."""
        request, self._lines[line] = self._lines[line].request, _Line()
        if request is None:
            return
        trio.lowlevel.notify_closing(request.fd)  # wakes the task that waits for its events
        if self._lock.locked():
            self._given_back.append(request)
        else:
            request.release()

    async def _follow(self, number: int) -> None:
        """Signal the edges of a line until it is given back."""
        line = self._lines[number]
        request = line.request
        while request is not None and self._lines[number] is line:
            try:
                await trio.lowlevel.wait_readable(request.fd)
                async with self._lock:
                    if self._lines[number] is not line:
                        return
                    levels = self._read(line, request, self._offsets[number])
            except trio.ClosedResourceError:
                return
            except OSError as error:
                _log.error("line %d of %s: %s", self._offsets[number], self._path, error.strerror)
                return
            for level in levels:
                self.interrupts[number].signal(level)

    def _read(self, line: _Line, request: gpiod.LineRequest, offset: int) -> list[int]:
        """Read edges, of which there are some; return the levels: for an interrupt by level that of now."""
        edges = request.read_edge_events()
        if line.kind.is_level:
            return [int(request.get_value(offset) is self._gpiod.line.Value.ACTIVE)]
        return [int(edge.event_type is edge.Type.RISING_EDGE) for edge in edges]

    def _value(self, level: int) -> gpiod.line.Value:
        return self._gpiod.line.Value.ACTIVE if level else self._gpiod.line.Value.INACTIVE

    def _names(self) -> list[str]:
        """Return the lines' names as a driver may have them: ASCII, and each once."""
        names: list[str] = []
        for offset in self._offsets:
            name = self._chip.get_line_info(offset).name or ""
            names.append(name if name.isascii() and name not in names else "")
        return names


_EDGES = {
    IrqType.NONE: "NONE",
    IrqType.EDGE_RISING: "RISING",
    IrqType.EDGE_FALLING: "FALLING",
    IrqType.EDGE_BOTH: "BOTH",
    IrqType.LEVEL_HIGH: "BOTH",
    IrqType.LEVEL_LOW: "BOTH",
}

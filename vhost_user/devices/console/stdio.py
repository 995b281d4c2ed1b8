"""The program's own terminal, or its pipes, as the host's end of a port."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import termios
import threading
import tty
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from vhost_user.devices.console.host import read_into, window_size, write_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.devices.console.port import ConsolePort

ESCAPE = b"\x01"
"""Ctrl-A, which begins a command to us, as in QEMU."""

_OUTPUT_FLAGS = 1
"""Where they are in what tcgetattr() returns."""

_log = logging.getLogger("vhost_user")


class Escape:
    """Finds commands in what is typed: Ctrl-A X quits, Ctrl-A twice is one; with other keys it is nothing."""

    def __init__(self) -> None:
        self.has_quit = False
        """True once the command to quit was typed."""
        self._pending = b""

    def filter(self, data: bytes) -> bytes:
        """Return what of `data` is for the guest."""
        result = bytearray()
        for byte in data:
            key = bytes([byte])
            if not self._pending and key == ESCAPE:
                self._pending = key
                continue
            if self._pending and key in {b"x", b"X"}:
                self.has_quit = True
            elif self._pending and key != ESCAPE:
                result += self._pending + key
            else:
                result += key
            self._pending = b""
        return bytes(result)


class StdioHost:
    """Standard input and output. A terminal is raw meanwhile, and afterwards what it was before."""

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        """Read from the descriptor `stdin`, write to `stdout`; both stay open. Raises OSError."""
        self._terminal = next((fd for fd in (stdin, stdout) if os.isatty(fd)), None)
        self._is_typed = os.isatty(stdin)
        self._input = _own(stdin, os.O_RDONLY)
        try:
            self._output = _own(stdout, os.O_WRONLY)
        except OSError:
            self._input.close()
            raise

    def __str__(self) -> str:
        return "standard input and output" if self._terminal is None else "this terminal"

    async def run(self, port: ConsolePort) -> None:
        """Serve the terminal; whoever types the command to quit, interrupts the program (SIGINT)."""
        port.host_opened()
        if self._is_typed:
            _log.info("this terminal is the guest's; Ctrl-A X ends the program")
        with _raw(self._terminal if self._is_typed else None) as set_raw:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, port)
                if self._terminal is not None:
                    nursery.start_soon(self._watch, port, self._terminal, set_raw)
                await self._read(port)

    async def _read(self, port: ConsolePort) -> None:
        escape = Escape()

        def accept(data: bytes) -> bytes:
            data = escape.filter(data)
            if escape.has_quit:
                signal.raise_signal(signal.SIGINT)
            return data

        await read_into(port, self._input.fileno(), accept if self._is_typed else bytes)

    async def _write(self, port: ConsolePort) -> None:
        try:
            await write_from(port, self._output.fileno())
        except OSError as error:
            _log.error("cannot write to standard output: %s", error.strerror)
            port.host_closed()

    async def _watch(self, port: ConsolePort, terminal: int, set_raw: Callable[[], None]) -> None:
        """Pass the terminal's size on whenever it changes; make it raw again after a stop (SIGCONT)."""
        if size := window_size(terminal):
            port.resize(*size)
        if threading.current_thread() is not threading.main_thread():
            return
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as signals:
            async for number in signals:
                if number == signal.SIGCONT:
                    set_raw()
                if size := window_size(terminal):
                    port.resize(*size)

    def hang_up(self) -> bool:
        """Refuse: it is always there."""
        return False

    def close(self) -> None:
        """Release it."""
        self._input.close()
        self._output.close()


def _own(fd: int, flags: int) -> OwnedFd:
    """Return another descriptor for the file of `fd` that does not block, while others of that file may.

    What cannot be opened again, such as a socket, becomes non-blocking as a whole. A regular file never
    blocks, and goes on from where it is, as whoever has it open with us does.
    """
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return OwnedFd(os.dup(fd))
    try:
        return OwnedFd(os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        own = OwnedFd(os.dup(fd))
        os.set_blocking(own.fileno(), False)
        return own


@contextlib.contextmanager
def _raw(terminal: int | None) -> Iterator[Callable[[], None]]:
    """Make a terminal raw for the length of the block, which gets a function that makes it so again.

    Line feeds are still completed on output: what we log comes there, too.
    """
    if terminal is None:
        yield lambda: None
        return
    before = termios.tcgetattr(terminal)

    def set_raw() -> None:
        with contextlib.suppress(termios.error):  # it has gone: SIGHUP comes with a SIGCONT
            tty.setraw(terminal, termios.TCSADRAIN)
            attributes = termios.tcgetattr(terminal)
            attributes[_OUTPUT_FLAGS] = before[_OUTPUT_FLAGS] | termios.OPOST
            termios.tcsetattr(terminal, termios.TCSADRAIN, attributes)

    set_raw()
    try:
        yield set_raw
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)

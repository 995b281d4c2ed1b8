"""ivshmem-client without a command: a prompt for a person, or lines from a pipe.

The commands are those of QEMU's contrib/ivshmem-client: help, dump and int, with ';' between them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import termios
from typing import TYPE_CHECKING, Self

import trio

from ivshmem_server.peer import NoSuchPeerError, connect
from ivshmem_server.program.client_errors import explain
from ivshmem_server.program.commands import (
    ALL,
    SERVER_GONE,
    describe,
    describe_change,
    describe_interrupt,
    ring,
)
from protocol.program.command_line import number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ivshmem_server.peer import Peer

PROMPT = "cmd> "

RETRY_SECONDS = 1.0
"""How often to try when there is no server."""

_HELP = """\
dump              print who is connected
int PEER VECTOR   interrupt PEER on VECTOR
int PEER all      interrupt PEER on each of its vectors
int all           interrupt every other peer on each of its vectors
help              print this; ';' separates commands, the end of input (Ctrl-D) leaves"""


async def run_shell(options: argparse.Namespace) -> None:
    """Run commands from standard input until it ends."""
    with _Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else _Pipe() as console:
        await _Shell(console, options).run()


class _Shell:
    """Obeys commands, shows interrupts as they come, and finds a new server when the old one has gone."""

    def __init__(self, console: _Pipe, options: argparse.Namespace) -> None:
        self._console = console
        self._options = options
        self._peer: Peer | None = None
        self._joined = trio.Event()
        self._current = trio.CancelScope()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stay_connected)
            async for line in self._console.lines():
                await self._joined.wait()
                for command in line.split(";"):
                    self._obey(command)
            nursery.cancel_scope.cancel()

    # The connection

    async def _stay_connected(self) -> None:
        """Join; when the server has gone, join again as soon as there is one.

        Until then the old connection stays, for the peers that are left can still ring and be rung.
        """
        async with trio.open_nursery() as nursery:
            while True:
                gone = await self._join(nursery)
                await gone.wait()

    async def _join(self, nursery: trio.Nursery) -> trio.Event:
        """Try until it works; return what is set when the server has gone."""
        complaint = ""
        while True:
            try:
                gone: trio.Event = await nursery.start(self._be_peer)
            except Exception as error:
                text = explain(error, self._options)
                if text is None:
                    raise
                if text != complaint:
                    complaint = text
                    self._console.say(f"{text}; trying again every {RETRY_SECONDS:g} s")
                await trio.sleep(RETRY_SECONDS)
            else:
                return gone

    async def _be_peer(self, *, task_status: trio.TaskStatus[trio.Event]) -> None:
        """Be a peer until the next connection takes over. Raises what `connect()` does, before it started."""
        gone = trio.Event()
        started = False
        try:
            with trio.CancelScope() as scope:
                async with connect(self._options.socket_path, vectors=self._options.vectors) as peer:
                    self._take_over(peer, scope)
                    started = True
                    task_status.started(gone)
                    await self._show(peer, gone)
        except Exception as error:
            text = explain(error, self._options)
            if text is None or not started:
                raise
            self._peer = None
            self._console.say(text)
        finally:
            gone.set()

    def _take_over(self, peer: Peer, scope: trio.CancelScope) -> None:
        self._current.cancel()
        self._current, self._peer = scope, peer
        self._console.say(f"connected to {self._options.socket_path} as peer {peer.id}")
        self._joined.set()

    async def _show(self, peer: Peer, gone: trio.Event) -> None:
        """Print interrupts and changes as they come, until cancelled."""
        changes = peer.changes()
        async with trio.open_nursery() as nursery:
            for vector in range(peer.vectors):
                nursery.start_soon(self._show_interrupts, peer, vector)
            async for change in changes:
                self._console.say(describe_change(change))
            self._console.say(f"{SERVER_GONE}; trying for a new one every {RETRY_SECONDS:g} s")
            gone.set()

    async def _show_interrupts(self, peer: Peer, vector: int) -> None:
        while True:
            self._console.say(describe_interrupt(vector, await peer.wait(vector)))

    # The commands

    def _obey(self, command: str) -> None:
        try:
            self._run(command.split())
        except (NoSuchPeerError, ValueError) as error:
            self._console.say(str(error))

    def _run(self, words: list[str]) -> None:
        match words:
            case []:
                pass
            case ["help"]:
                self._console.say(_HELP)
            case ["dump"]:
                self._console.say("\n".join(describe(self._connected_peer())))
            case ["int", "all"]:
                ring(self._connected_peer(), ALL, ALL)
            case ["int", peer, "all"]:
                ring(self._connected_peer(), _number(peer), ALL)
            case ["int", peer, vector]:
                ring(self._connected_peer(), _number(peer), _number(vector))
            case _:
                raise ValueError(f"'{' '.join(words)}' is not a command; try help")

    def _connected_peer(self) -> Peer:
        if self._peer is None:
            raise ValueError(f"not connected to {self._options.socket_path}; wait for a server")
        return self._peer


def _number(text: str) -> int:
    try:
        return number(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


class _Pipe:
    """Standard input and output where no person sits at both."""

    async def lines(self) -> AsyncIterator[str]:
        """Yield each line of input, without its end."""
        buffer = b""
        # Not sys.stdin: a thread that is left waiting in it keeps the interpreter from ending.
        while data := await trio.to_thread.run_sync(os.read, 0, 65536, abandon_on_cancel=True):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
        if buffer:
            yield buffer.decode(errors="replace")

    def say(self, text: str) -> None:
        """Print `text` at once."""
        print(text, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class _Terminal(_Pipe):
    """A person at a terminal: a prompt with line editing, below what is printed."""

    def __enter__(self) -> Self:
        import readline

        self._line_so_far = readline.get_line_buffer
        self._prompting = False
        self._attributes = termios.tcgetattr(sys.stdin)
        return self

    async def lines(self) -> AsyncIterator[str]:
        """Yield each line that the person enters."""
        with contextlib.suppress(EOFError):
            while True:
                yield await self._ask()

    async def _ask(self) -> str:
        self._prompting = True
        try:
            return await trio.to_thread.run_sync(input, PROMPT, abandon_on_cancel=True)
        except EOFError:
            print()
            raise
        finally:
            self._prompting = False

    def say(self, text: str) -> None:
        """Print `text` above the prompt, and the prompt with what was typed so far again."""
        if self._prompting:
            print(f"\r\x1b[K{text}\n{PROMPT}{self._line_so_far()}", end="", flush=True)
        else:
            super().say(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A thread may still be editing a line, and would leave the terminal without echo.
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._attributes)

"""The load generator load.c: built on the spot, and its reports."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("load.c")


class BenchError(Exception):
    """Something that a measurement needs does not work; the text is one line for the user."""


@dataclass(frozen=True)
class JoinReport:
    """What became of a number of clients that joined a server as fast as it let them."""

    connected: int
    closed: int
    """How many connections the server has closed."""
    expected: int
    """How many messages all clients together should have got."""
    received: int
    wrong: int
    """How many of them broke the protocol, and connects that were refused; `fault` is the first."""
    fault: str
    seconds: float
    """From the first connect to the last message."""

    @classmethod
    def parse(cls, line: str) -> JoinReport:
        """Read the line that `load join` prints. Raises BenchError for none: standard error says why."""
        if not line:
            raise BenchError("the load generator could not do its work")
        return cls(**json.loads(line))

    @property
    def complete(self) -> bool:
        """Whether every client is connected and got every message exactly once."""
        return self.received == self.expected and not self.wrong and not self.closed

    @property
    def lost(self) -> str:
        """What went wrong, in a few words; empty if nothing did."""
        if self.complete:
            return ""
        if self.closed:
            return f"server gone at client {self.connected}"
        return self.fault or f"{self.expected - self.received} of {self.expected} messages lost"


@dataclass(frozen=True)
class RoundTrips:
    """Round-trip times of a doorbell between two processes, in microseconds."""

    median_us: float
    p99_us: float

    @classmethod
    def parse(cls, line: str) -> RoundTrips:
        """Read the line that `load doorbell` and `tests.bench.doorbell` print."""
        return cls(**json.loads(line))


def build(directory: Path) -> Path:
    """Compile the load generator into `directory`; return the program. Raises BenchError."""
    program = directory / "load"
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-std=gnu11", "-O2", "-o", str(program), str(_SOURCE)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"load.c needs a C compiler (apt-get install gcc, or CC=...): {error}") from None
    return program


def join_command(program: Path, socket: Path, clients: int, vectors: int, quiet: float) -> list[str]:
    """Return the command that joins `clients` clients; `quiet` seconds without a message end it.

    It prints a JoinReport and keeps the connections until its standard input ends.
    """
    return [str(program), "join", str(socket), str(clients), str(vectors), str(int(quiet * 1000))]

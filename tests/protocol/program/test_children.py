"""A program that blocks its signals starts others that do not."""

from __future__ import annotations

import subprocess
import sys

import pytest

SECONDS = 60

STARTS = {
    "subprocess": "subprocess.run(PRINT, check=True)",
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/sh', PRINT, os.environ), 0)",
    "trio": "await trio.run_process(PRINT)",
    "fork": "os.fork() or os.execv('/bin/sh', PRINT); os.wait()",
    "fork without exec": "os.fork() or (print_blocked(), os._exit(0)); os.wait()",
}

PROGRAM = """
import os, re, signal, subprocess, sys, threading
import trio
from protocol.program.signals import ServiceSignals, interruptible

PRINT = ["/bin/sh", "-c", "grep -E 'Sig(Blk|Cgt)' /proc/self/status"]

def print_blocked():
    sys.stdout.write("".join(line for line in open("/proc/self/status") if line.startswith("SigBlk")))
    sys.stdout.flush()

async def main(received):
    START
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), number)
    came = {await received.wait() for _ in range(2)}
    print(*sorted(came), flush=True)

signal.signal(signal.SIGHUP, signal.SIG_DFL)
with ServiceSignals() as received:
    with interruptible():
        pass
    trio.run(main, received)
"""


@pytest.mark.parametrize("how", STARTS)
def test_child_gets_the_signals_and_so_do_we(how: str) -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("START", STARTS[how])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.stderr == ""
    blocked, *_, came = done.stdout.splitlines()
    assert blocked == f"SigBlk:\t{0:016x}"
    assert came == "2 15"
    assert done.returncode == 0

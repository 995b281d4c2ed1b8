"""The signals of programs that tests start, and of the tests themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from signal import valid_signals

from tests.rig.programs import signals

_ROOT = Path(__file__).parents[1]
_SIGNALS = {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1}
_SHOW = ["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]


def _numbers(printed: str) -> dict[str, set[int]]:
    """Return the signals in each mask, but for those that the C library has for itself (32 and 33)."""
    masks = (line.split(":\t") for line in printed.splitlines())
    return {name: {each for each in valid_signals() if int(mask, 16) >> each - 1 & 1} for name, mask in masks}


def show() -> None:
    """Print the signals of a child outside of the block, and in it, where a hangup must not end us."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    subprocess.run(_SHOW, check=True)
    with signals.default_in_children():
        signal.raise_signal(signal.SIGHUP)
        subprocess.run(_SHOW, check=True)
    assert {each for each in _SIGNALS if signal.getsignal(each) is signal.SIG_IGN} == _SIGNALS
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTERM}


def test_a_child_has_default_signals_whatever_its_parent_ignores_or_blocks() -> None:
    argv = [sys.executable, "-c", "from tests import test_rig_signals as t; t.show()"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=_ROOT, timeout=60, check=True)
    lines = done.stdout.splitlines(keepends=True)
    assert _numbers("".join(lines[:2])) == {"SigBlk": {signal.SIGTERM}, "SigIgn": _SIGNALS}
    assert _numbers("".join(lines[2:])) == {"SigBlk": set(), "SigIgn": set()}


def test_the_programs_of_this_run_have_default_signals() -> None:
    done = subprocess.run(_SHOW, capture_output=True, text=True, check=True)
    assert _numbers(done.stdout) == {"SigBlk": set(), "SigIgn": set()}

"""Running a function of the tests in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY = b"ready\n"

_ROOT = Path(__file__).parents[3]
_TIMEOUT_SECONDS = 60


def run_child(function: Callable[..., object], *arguments: object) -> Any:
    """Call the function in a process of its own; return what it returns, by way of JSON."""
    result = subprocess.run(
        _command(function, arguments),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        cwd=_ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@contextlib.contextmanager
def running_child(function: Callable[..., object], *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Call the function in a process of its own; go on once it says `READY`; kill it in the end."""
    with subprocess.Popen(_command(function, arguments), stdout=subprocess.PIPE, cwd=_ROOT) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == READY
            yield process
        finally:
            process.kill()


def _command(function: Callable[..., object], arguments: tuple[object, ...]) -> list[str]:
    name = f"{function.__module__}:{function.__qualname__}"
    return [sys.executable, "-W", "error", "-m", __name__, name, json.dumps(arguments)]


def _main(name: str, arguments: str) -> None:
    module, _, function = name.partition(":")
    print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))


if __name__ == "__main__":
    _main(*sys.argv[1:])

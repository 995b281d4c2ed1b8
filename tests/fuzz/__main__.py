"""Fuzzes one target: python -m tests.fuzz TARGET [libFuzzer's options, directories of inputs, or a file].

A file alone is tried once: that is how to look again at an input that failed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

from tests.fuzz.harness import TARGETS, guarded, swallowed_errors

CODE_UNDER_TEST = ["protocol", "vhost_user", "ivshmem_server"]


def main() -> None:
    """Hand the target to libFuzzer, which ends the process."""
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"'{name}' is no target: {', '.join(TARGETS)}")
    with atheris.instrument_imports(include=CODE_UNDER_TEST):
        target = importlib.import_module(f"tests.fuzz.{name}")
    one_input = guarded(name, target.one_input, swallowed_errors())
    if options and all(Path(option).is_file() for option in options):
        for path in options:
            one_input(Path(path).read_bytes())
        print(f"{name}: no defect")
        return
    atheris.Setup([f"tests.fuzz {name}", *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

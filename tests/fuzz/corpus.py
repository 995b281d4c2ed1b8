"""Writes the corpus, the inputs that every run begins with: python -m tests.fuzz.corpus [DIRECTORY]."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

from tests.fuzz.harness import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def write(directory: Path) -> None:
    """Write each target's seeds into a directory of its name, in place of what is there."""
    for target in TARGETS:
        place = directory / target
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name, data in importlib.import_module(f"tests.fuzz.{target}").seeds():
            (place / name).write_bytes(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS)

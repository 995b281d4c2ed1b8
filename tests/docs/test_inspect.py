"""docs/inspect.md is true: its session runs, and prints what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.documents import blocks, read, session

GUIDE = read("inspect.md")


def test_session(tmp_path: Path) -> None:
    (tmp_path / "mailbox.c").write_text(blocks(GUIDE, "c")[0])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in session(GUIDE):
        done = subprocess.run(
            command.text,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            timeout=60,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert (done.stdout.rstrip("\n"), done.returncode) == (command.output, 0), command.text

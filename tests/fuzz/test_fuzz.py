"""A bounded run of each target, with the same inputs every time; `make fuzz` goes on for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from protocol.errors import RemoteProtocolError
from tests.fuzz.corpus import CORPUS
from tests.fuzz.harness import TARGETS, DefectError, guarded

ROOT = Path(__file__).parents[2]

RUNS = {
    "backend_session": 20_000,
    "frontend_session": 20_000,
    "observer": 10_000,
    "ivshmem_client": 64_000,
    "stream": 5_000,
    "split_ring": 8_000,
    "packed_ring": 6_000,
    "blk": 10_000,
    "console": 12_000,
    "gpio": 10_000,
    "net": 10_000,
    "i2c": 2_000,
    "server": 1_000,
    "texts": 12_000,
    "vsock": 3_000,
    "input": 8_000,
}
"""How many inputs each target is given."""

MOST_SECONDS = 600
"""When a run is given up that takes a minute on a machine with nothing else to do."""


def test_every_target_has_its_share_of_200_000_inputs() -> None:
    assert set(RUNS) == set(TARGETS)
    assert sum(RUNS.values()) >= 200_000


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_harm(target: str) -> None:
    with tempfile.TemporaryDirectory() as found:
        command = [
            *(sys.executable, "-m", "tests.fuzz", target),
            *(f"-runs={RUNS[target]}", "-seed=1", "-max_len=2048", "-timeout=120", "-print_final_stats=1"),
            *(f"-artifact_prefix={found}/", found, str(CORPUS / target)),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
        )
    assert process.returncode == 0, process.stdout[-8000:]
    executed = re.search(r"^stat::number_of_executed_units:\s*(\d+)$", process.stdout, re.MULTILINE)
    assert executed, process.stdout[-2000:]
    assert int(executed[1]) >= RUNS[target]


def test_corpus_is_what_its_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.fuzz.corpus", str(tmp_path)], cwd=ROOT, check=True)
    written, kept = (
        {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path, CORPUS)
    )
    assert set(written) == set(kept)
    assert written == kept


def test_harness_says_which_input_failed_and_how_to_try_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: bytes) -> None:
        raise RemoteProtocolError("what a target should have caught")

    with pytest.raises(RemoteProtocolError):
        guarded("stream", fails, [])(b"\x01\x02")
    told = capsys.readouterr().err
    assert "in hexadecimal: 0102" in told
    assert "base64 -d <<< AQI= > input; python -m tests.fuzz stream input" in told


def test_harness_notices_a_descriptor_that_stays_open() -> None:
    opened: list[int] = []

    def leaks(_: bytes) -> None:
        opened.append(os.open(os.devnull, os.O_RDONLY))

    with pytest.raises(DefectError, match="are open now"):
        guarded("stream", leaks, [])(b"")
    os.close(opened[0])


def test_harness_notices_an_error_that_nobody_saw() -> None:
    swallowed: list[str] = []
    with pytest.raises(DefectError, match=r"an error that nobody saw: \['lost'\]"):
        guarded("stream", lambda _: swallowed.append("lost"), swallowed)(b"")


def test_one_input_can_be_tried_again(tmp_path: Path) -> None:
    """What a person does with a failure: put the input into a file, and name that."""
    (tmp_path / "input").write_bytes(b"\0")
    command = [sys.executable, "-m", "tests.fuzz", "ivshmem_client", str(tmp_path / "input")]
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "ivshmem_client: no defect\n")

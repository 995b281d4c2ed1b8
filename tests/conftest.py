"""What holds for every test: nothing is left behind, and failures say why."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.leftovers import MARKER, Traces, left_since

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.rig.programs.netns import Namespace

# pytest has the assertions of test files say what they saw; here are those of the modules that these share.
pytest.register_assert_rewrite(
    *(f"tests.{each.parent.name}" for each in Path(__file__).parent.glob("*/__init__.py"))
)

# A machine that is busy with a guest's boot is slow, not wrong: no deadlines.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=20)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=5000)
_left_out: list[pytest.Item] = []

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what `make test` leaves out."""
    _left_out.extend(item for item in items if item.get_closest_marker("extended"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out and "not extended" in terminalreporter.config.option.markexpr:
        terminalreporter.write_line(
            f"{len(_left_out)} extended tests of all parts are left out; make test-all runs them, too"
        )


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """Start every program with default signals: this run may be one in the background, or under nohup."""
    from tests.rig.programs import signals

    with signals.default_in_children():
        yield


@pytest.fixture(scope="session", autouse=True)
def terminated_as_interrupted(default_signals: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Clean up on SIGTERM, as timeout(1) and CI systems send it, too: make it a Ctrl-C.

    A shell may have had us ignore that, being in its background.
    """

    def interrupt(*_: object) -> None:
        request.session.shouldstop = "terminated"  # an exception is lost that is raised in a finalizer
        signal.raise_signal(signal.SIGINT)

    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    terminated = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGINT, interrupted)


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give this run a directory for temporary files of its own, also to the programs that it starts."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it was: it is kept for the next runs
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="tests-") as directory:
        Path(directory).chmod(0o711)  # tests give up their privileges, too
        patch.setattr(tempfile, "tempdir", directory)
        patch.setenv("TMPDIR", directory)
        patch.setenv(MARKER, directory)
        yield Path(directory)


@pytest.fixture(scope="session", autouse=True)
def platform() -> Iterator[None]:
    """Have QEMU and its tools be those of the selected platform, wherever they are called by name."""
    from tests.rig.debian import packages

    with pytest.MonkeyPatch.context() as patch:
        if programs := packages.guest_programs():
            patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="session", autouse=True)
def forker(default_signals: None, temporary: Path, platform: None) -> Iterator[None]:
    """Let tests run our programs without starting Python each time."""
    from tests.rig.programs import forked

    with forked.running():
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(temporary: Path) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a process, shared memory or a temporary file; remove them."""
    before = Traces.of_now(temporary)
    yield
    if left := left_since(before, temporary):
        message = f"the test left behind: {left}"
        left.remove()
        pytest.fail(message, pytrace=False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, as a socket's path is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="qemu-companion-") as path:
        yield Path(path)


@pytest.fixture
def net() -> Iterator[Namespace]:
    """A network namespace with taps; without one, tests fail in CI, and are left out elsewhere."""
    from tests.rig.programs import netns

    if reason := netns.unavailable():
        (pytest.fail if "CI" in os.environ else pytest.skip)(reason)
    with netns.namespace() as made:
        yield made

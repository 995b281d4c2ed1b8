"""Devices of other packages, installed with real entry points: a broken one harms itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.program.cli_program import OWN_DEVICE, SECONDS, refusal, run
from vhost_user.devices import DEVICES
from vhost_user.program.libvirt import described_devices
from vhost_user.program.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

METHOD = "\n\n    @classmethod\n    def {}:\n        {}\n"


@dataclass(frozen=True)
class Package:
    """A package with a device."""

    name: str
    source: str = OWN_DEVICE
    """The module of the same name."""
    points: str = ""
    """The lines of its entry points, by default one for Hello."""

    def install(self, directory: Path) -> None:
        (directory / f"{self.name}.py").write_text(self.source)
        info = directory / f"{self.name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {self.name}\nVersion: 1.0\n")
        points = self.points or f"{self.name} = {self.name}:Hello"
        (info / "entry_points.txt").write_text(f"[vhost_user.devices]\n{points}\n")


def with_options(*lines: str) -> str:
    return OWN_DEVICE + METHOD.format("add_options(cls, parser)", "\n        ".join(lines))


WORKING = {
    Package("plain"): "plain: Says hello.",
    Package("extra", points="extra = extra:Hello [some]"): "extra: Says hello.",
    Package("positional", with_options("parser.add_argument('file', metavar='FILE')")): "FILE",
    Package("pairs", with_options("parser.add_argument('--two', nargs=2, metavar=('A', 'B'))")): "--two A B",
    Package("undocumented", OWN_DEVICE.replace('    """Says hello."""\n', "")): "undocumented: Hello\n",
    Package("percent", with_options("parser.add_argument('--load', help='at most 100%')")): "--load LOAD",
}
"""With what `list` prints of each."""

BROKEN = {
    Package("absent", points="absent = not_there:Hello"): (
        "cannot import not_there: No module named 'not_there'; is it installed, or in PYTHONPATH?"
    ),
    Package("raising", "1 / 0"): "cannot import raising: ZeroDivisionError: division by zero (",
    Package("leaving", "import sys\nsys.exit('good bye')"): "cannot import leaving: SystemExit: good bye (",
    Package("odd", "class Odd(BaseException): pass\nraise Odd('a\\nb')"): "cannot import odd: Odd: a b (",
    Package("clash", with_options("parser.add_argument('--fd')")): (
        "hello cannot add its options: ArgumentError: argument --fd: conflicting option string: --fd"
    ),
    Package("optionless", with_options("raise SystemExit")): "hello cannot add its options: SystemExit",
    Package("zero", OWN_DEVICE.replace("DeviceId.CONSOLE", "0")): "; give a number from 1 to 65535",
    Package("late", OWN_DEVICE + "\n\nHello.device_id = 'console'\n"): (
        "the device_id of late:Hello is not a type of device; set it to one in the class"
    ),
    Package("foreign", "class Hello: pass"): "foreign has no device class Hello",
    Package("many", OWN_DEVICE + "    many_sockets = True\n"): "Hello.many_sockets is not used: write a",
    Package(
        "garbled", points="garbled = what is this?"
    ): "'what is this?' names no device; give MODULE:CLASS",
    Package("bare", points="bare = bare"): "'bare' names no device; give MODULE:CLASS",
}
"""With what is wrong with each."""

TWICE = (Package("one", points="both = one:Hello"), Package("other", points="both = other:Hello"))
HIDDEN = Package("hidden", points="rng = hidden:Hello")
MODELLESS = Package("modelless", OWN_DEVICE + METHOD.format("qemu_model(cls)", "return cls.nothing"))
UNREADABLE = Package("unreadable", points="no equals sign")
ALL = (*WORKING, *BROKEN, *TWICE, HIDDEN, MODELLESS, UNREADABLE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in PYTHONPATH with all packages."""
    directory = tmp_path_factory.mktemp("packages")
    for package in ALL:
        package.install(directory)
    return directory


def run_installed(installed: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "vhost_user.program.main", *argv]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        program, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
    )


@pytest.fixture(scope="module")
def listed(installed: Path) -> subprocess.CompletedProcess[str]:
    return run_installed(installed, "list", "--qemu", "no-such-qemu")


def test_list_has_all_that_work(listed: subprocess.CompletedProcess[str]) -> None:
    assert listed.returncode == 0
    paragraphs = {text.partition(":")[0]: text for text in f"{listed.stdout}".split("\n\n")}
    assert set(paragraphs) == {*DEVICES, *(package.name for package in WORKING)}
    assert list(paragraphs) == sorted(paragraphs)
    for package, text in WORKING.items():
        assert text in paragraphs[package.name]


def test_list_names_all_that_do_not_in_a_line_each(listed: subprocess.CompletedProcess[str]) -> None:
    lines = listed.stderr.splitlines()
    assert all(line.startswith("vhost-user list: ") for line in lines)
    for package, text in BROKEN.items():
        (line,) = (line for line in lines if f"of the package {package.name} " in line)
        assert f"the device '{package.name}' of the package {package.name} cannot be used: " in line
        assert text in line
        assert line.endswith(" (update or uninstall the package)")
    assert len(lines) == len(BROKEN) + 4


@pytest.mark.parametrize(
    "text",
    [
        "the device 'both' is installed 2 times, by one and other (one:Hello, other:Hello); uninstall",
        "the device 'rng' of the package hidden is hidden by ours; 'vhost-user run hidden:Hello' runs it",
        "the device 'modelless' of the package modelless cannot be used: its qemu_model() does not work: ",
        "cannot read the entry points of the package unreadable: ",
    ],
)
def test_list_names_what_concerns_several(listed: subprocess.CompletedProcess[str], text: str) -> None:
    assert len([line for line in listed.stderr.splitlines() if text in line]) == 1


def test_our_own_devices_know_nothing_of_it(installed: Path, directory: Path) -> None:
    told = run_installed(installed, "run", "rng", "--print-capabilities")
    assert (told.returncode, json.loads(told.stdout)["type"], told.stderr) == (0, "rng", "")
    written = run_installed(installed, "describe", str(directory))
    assert (written.returncode, written.stderr) == (0, "")
    assert len(list(directory.iterdir())) == len(described_devices())


@pytest.fixture
def run_here(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command in this process; return its exit code, and what it prints to both streams."""
    monkeypatch.syspath_prepend(installed)

    def run_command(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run_command
    for package in ALL:
        sys.modules.pop(package.name, None)


@pytest.mark.parametrize("package", BROKEN, ids=lambda package: package.name)
def test_device_that_is_run_says_what_is_wrong(
    run_here: Callable[..., tuple[int, str, str]], package: Package
) -> None:
    code, out, error = run_here("run", package.name, "-s", "/tmp/none")
    assert (code, out) == (1, "")
    (line,) = error.splitlines()
    assert f"the device '{package.name}' of the package {package.name} cannot be used: " in line
    assert BROKEN[package] in line


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["both"], "the device 'both' is installed 2 times"),
        (
            ["modelless", "-s", "/tmp/s", "--print-qemu-args"],
            "hello cannot say how it is attached: Attribute",
        ),
        (["percent", "--help"], "hello cannot read its options: ValueError: "),
        (["nothing"], "there is no device 'nothing'; give one of absent, "),
    ],
)
def test_what_fails_later_is_said_in_one_line(
    run_here: Callable[..., tuple[int, str, str]], argv: list[str], text: str
) -> None:
    code, out, error = run_here("run", *argv)
    assert (code, out) == (1, "")
    (line,) = error.splitlines()
    assert text in line


@pytest.mark.parametrize("name", ["plain", "extra", "one:Hello", "hidden:Hello", "undocumented"])
def test_other_devices_are_run(run_here: Callable[..., tuple[int, str, str]], name: str) -> None:
    code, out, error = run_here("run", name, "-s", "/tmp/s", "--print-qemu-args")
    assert (code, error) == (0, "")
    assert "virtio-id=3" in out


# Devices that are named as MODULE:CLASS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rgn", "there is no device 'rgn'; give one of "),
        ("nothing:Here", "cannot import nothing: No module named 'nothing'"),
        ("json:JSONDecoder", "json has no device class JSONDecoder"),
        ("json:Nothing", "json has no device class Nothing"),
        (":Here", "':Here' names no device; give MODULE:CLASS"),
        ("json:", "'json:' names no device; give MODULE:CLASS"),
        (".:Here", "'.:Here' names no device; give MODULE:CLASS"),
    ],
)
def test_device_that_there_is_none(name: str, text: str) -> None:
    assert text in refusal("run", name, "-s", "/tmp/a")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nothing", "cannot import mine: No module named 'nothing'"),
        ("def f(:", "cannot import mine: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("1 / 0", "mine.py, line 1)"),
        (OWN_DEVICE.replace("    device_id = DeviceId.CONSOLE\n", ""), "mine:Hello has no device_id; set it"),
        (OWN_DEVICE.replace("run_queue", "runqueue"), "mine:Hello has no run_queue(); write that method"),
        (
            OWN_DEVICE + "\n    def __init__(self, size):\n        pass\n",
            "Hello() cannot be made: missing a required argument: 'size'; write from_options()",
        ),
        (
            OWN_DEVICE + "\n    def __init__(self):\n        open('/none')\n",
            "cannot start Hello: [Errno 2] No such file or directory: '/none'",
        ),
        (
            OWN_DEVICE.replace("DeviceId.CONSOLE", "0"),
            "cannot import mine: ValueError: 0 is not a device type; give a number from 1 to 65535 (",
        ),
        (OWN_DEVICE.replace("DeviceId.CONSOLE", "0"), "mine.py, line "),
        (
            OWN_DEVICE.replace("DeviceId.CONSOLE", "True"),
            "True is not a device type; give a number (",
        ),
        (
            OWN_DEVICE + "\n    def __init__(self):\n        {}['size']\n",
            "cannot start Hello: KeyError: 'size' (",
        ),
    ],
)
def test_what_is_wrong_with_ones_own_device(directory: Path, source: str, text: str) -> None:
    (directory / "mine.py").write_text(source)
    result = run("run", "mine:Hello", "-s", str(directory / "s"), cwd=directory)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert text in line


@pytest.mark.parametrize("number", ["63", "DeviceId(63)"])
def test_device_of_a_type_without_a_name(directory: Path, number: str) -> None:
    (directory / "mine.py").write_text(OWN_DEVICE.replace("DeviceId.CONSOLE", number))
    told = run("run", "mine:Hello", "--print-capabilities", cwd=directory)
    assert json.loads(told.stdout) == {"type": "type-63", "features": []}
    printed = run("run", "mine:Hello", "-s", "/tmp/s", "--print-qemu-args", cwd=directory)
    assert "-device vhost-user-test-device-pci,virtio-id=63,num_vqs=1" in printed.stdout
    assert (printed.returncode, printed.stderr) == (0, "")


def test_device_whose_number_is_inherited_from_elsewhere(directory: Path) -> None:
    source = OWN_DEVICE.replace("    device_id = DeviceId.CONSOLE\n", "")
    source = source.replace("class Hello(", "class Numbered:\n    device_id = 63\n\n\nclass Hello(Numbered, ")
    (directory / "mine.py").write_text(source)
    told = run("run", "mine:Hello", "--print-capabilities", cwd=directory)
    assert json.loads(told.stdout) == {"type": "type-63", "features": []}

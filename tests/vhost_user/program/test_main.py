"""What the command lines print and refuse, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

import vhost_user
from tests.rig.programs.backend import command
from tests.vhost_user.program.cli_program import OWN_DEVICE, SECONDS, refusal, run
from vhost_user.devices import DEVICES
from vhost_user.program.installed import find
from vhost_user.program.libvirt import described_devices
from vhost_user.program.run import capabilities

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("program", ["no-such-qemu", "cat"])  # cat has a version, too
def test_list_without_a_qemu(program: str) -> None:
    result = run("list", "--qemu", program)
    assert result.returncode == 0
    _, _, rng = result.stdout.partition("\nrng: ")
    assert rng.splitlines()[:3] == [
        "Random bytes for a guest, from a file of the host.",
        f"    QEMU: vhost-user-rng-pci; there is no QEMU '{program}' here to be asked whether it has it",
        "    --filename FILE  --period MS  --max-bytes N  --socket-count N",
    ]


@pytest.mark.qemu
def test_list_tells_what_this_machines_qemu_attaches() -> None:
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    _, _, number = version.stdout.partition(" version ")
    listed = dict(each.split(": ", 1) for each in run("list").stdout.split("\n\n"))
    assert set(listed) == set(DEVICES)
    attached = f"which QEMU {number.split()[0]} has"
    assert f"vhost-user-blk-pci, {attached}\n" in listed["blk"]


@pytest.mark.parametrize("name", described_devices())
def test_description_for_management_software(name: str) -> None:
    """What is installed in share/qemu/vhost-user says what the device itself says."""
    path = Path(vhost_user.__file__).parent / "share" / f"50-qemu-companion-{name}.json"
    program = find(name)
    assert json.loads(path.read_text()) == {
        "description": program.summary,
        "type": capabilities(program)["type"],
        "binary": f"/usr/bin/vhost-user-{name}",
    }


def test_every_device_has_its_program_and_its_description_installed() -> None:
    root = Path(vhost_user.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["data-files"]["share/qemu/vhost-user"]
    described = {path.name for pattern in patterns for path in root.glob(pattern)}
    assert described == {f"50-qemu-companion-{name}.json" for name in described_devices()}
    programs = {point.name: point for point in entry_points(group="console_scripts")}
    for name in DEVICES:
        assert programs[f"vhost-user-{name}"].load().args == (name,)


def test_describe_names_the_programs_where_they_are(directory: Path) -> None:
    """The installed files name /usr/bin, where a distribution puts the programs, and pip does not."""
    where = directory / "a" / "vhost-user"
    result = run("describe", str(where))
    assert (result.returncode, result.stderr) == (0, "")
    assert [Path(line) for line in result.stdout.splitlines()] == [
        where / f"50-qemu-companion-{name}.json" for name in described_devices()
    ]
    for name in described_devices():
        content = json.loads((where / f"50-qemu-companion-{name}.json").read_text())
        assert set(content) == {"description", "type", "binary"}
        told = subprocess.run(
            [content["binary"], "--print-capabilities"], capture_output=True, timeout=SECONDS, check=True
        )
        assert json.loads(told.stdout)["type"] == content["type"]


def test_describe_where_nothing_can_be_written() -> None:
    line = refusal("describe", "/proc/none")
    assert line.startswith("vhost-user: cannot write /proc/none/50-qemu-companion-blk.json: ")
    assert line.endswith("; give another directory")


def test_types_that_libvirt_does_not_know_are_not_described() -> None:
    assert "i2c" not in described_devices()
    assert {"blk", "rng"} <= set(described_devices())


@pytest.mark.parametrize("name", DEVICES)
def test_capabilities_are_those_that_qemu_knows(name: str) -> None:
    """QEMU's docs/interop/vhost-user.json lists the features of some types."""
    told = capabilities(find(name))
    features = {"block": {"read-only", "blk-file"}, "input": {"evdev-path", "no-grab"}}
    assert set(told["features"]) <= features.get(str(told["type"]), set())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "others", [[], ["--fd", "x"], ["--socket-path", "/a", "--fd", "3"], ["--nonsense", "-m", "-1"]]
)
@pytest.mark.parametrize("first", [True, False])
def test_print_capabilities_ignores_everything_else(others: list[str], first: bool) -> None:
    argv = ["--print-capabilities", *others] if first else [*others, "--print-capabilities"]
    result = run("run", "rng", *argv)
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"type": "rng", "features": []}
    assert result.stderr == ""


def test_print_qemu_args() -> None:
    result = run("run", "rng", "--socket-path", "/tmp/with space,comma", "--print-qemu-args")
    assert result.returncode == 0
    assert "memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem" in result.stdout
    assert "-chardev 'socket,id=rng0,path=/tmp/with space,,comma'" in result.stdout
    assert result.stdout.endswith("-device vhost-user-rng-pci,chardev=rng0\n")


def test_print_qemu_args_for_a_client() -> None:
    result = run("run", "rng", "--connect", "/tmp/a", "--print-qemu-args")
    assert "path=/tmp/a,server=on" in result.stdout


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("examples.scripted_rng:ScriptedRng", "-device vhost-user-rng-pci,chardev=scripted-rng0\n"),
        (
            "examples.numbered_disk:NumberedDisk",
            "-device vhost-user-blk-pci,num-queues=1,chardev=numbered-disk0\n",
        ),
        (
            "tests.vhost_user.echo:Echo",
            "-device vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=16,chardev=echo0\n",
        ),
    ],
)
def test_print_qemu_args_for_devices_of_ones_own(device: str, expected: str) -> None:
    """QEMU's device is that of the type; for a type that QEMU does not know it is one for tests."""
    result = run("run", device, "-s", "/tmp/a", "--print-qemu-args")
    assert result.stdout.endswith(expected)


def domain(*argv: str) -> ElementTree.Element:
    """Return a domain with what a command line prints for one."""
    result = run("run", *argv, "--print-libvirt-xml")
    assert (result.returncode, result.stderr) == (0, "")
    return ElementTree.fromstring(f"<domain>{result.stdout}</domain>")


def arguments(parsed: ElementTree.Element) -> list[str]:
    namespace = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    return [one.attrib["value"] for one in parsed.iterfind(f"{namespace}commandline/{namespace}arg")]


def test_print_libvirt_xml_of_what_libvirt_has_not() -> None:
    parsed = domain("rng", "-s", "/tmp/<a>&,b")
    assert arguments(parsed) == [
        *("-chardev", "socket,id=rng0,path=/tmp/<a>&,,b"),
        *("-device", "vhost-user-rng-pci,addr=0x1d,chardev=rng0"),
    ]
    assert parsed.find("memoryBacking/access[@mode='shared']") is not None


def test_print_libvirt_xml_of_several_devices_for_one_guest() -> None:
    devices = arguments(domain("input", "-s", "/tmp/a", "--keyboard", "--tablet"))[3::4]
    assert devices == [
        "vhost-user-input-pci,addr=0x18,chardev=input0",
        "vhost-user-input-pci,addr=0x17,chardev=input1",
    ]


def test_print_libvirt_xml_of_several_guests() -> None:
    result = run("run", "net", "--link", "-c", "2", "-s", "/tmp/a--b", "--mtu", "2000", "--print-libvirt-xml")
    one, other = re.split(r"<!-- the guest at /tmp/a- -b\d -->\n", result.stdout)[1:]
    for number, text in enumerate((one, other)):
        interface = ElementTree.fromstring(f"<domain>{text}</domain>").find("devices/interface")
        assert interface is not None
        assert interface.find(f"source[@path='/tmp/a--b{number}']") is not None
        assert interface.find("mtu[@size='2000']") is not None


def test_print_libvirt_xml_of_a_client() -> None:
    """A disk of libvirt connects to the back-end, and cannot listen."""
    argv = ["--connect", "/tmp/a", "--iommu", "-b", "x"]
    assert arguments(domain("blk", *argv)) == [
        *("-chardev", "socket,id=blk0,path=/tmp/a,server=on", "-device"),
        "vhost-user-blk-pci,queue-size=128,addr=0x10,iommu_platform=on,ats=on,disable-legacy=on,chardev=blk0",
    ]
    assert "--print-libvirt-xml needs the path of the socket" in refusal(
        "run", "rng", "--fd", "0", "--print-libvirt-xml"
    )


@pytest.mark.parametrize(
    ("version", "chardev"),
    [
        ("9.1.50", "reconnect=1"),
        ("9.2.0", "reconnect-ms=1000"),
        ("10.0.13 (Debian 1:10.0)", "reconnect-ms=1000"),
    ],
)
def test_disk_is_to_be_connected_to_again_as_this_qemu_has_it(
    directory: Path, version: str, chardev: str
) -> None:
    qemu = directory / "qemu"
    qemu.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    qemu.chmod(0o755)
    argv = ["run", "blk", "-s", "/tmp/a", "-b", "x", "--print-qemu-args", "--qemu", str(qemu)]
    assert f"-chardev socket,id=blk0,path=/tmp/a,{chardev} " in run(*argv).stdout


def test_disk_without_a_qemu_to_ask() -> None:
    argv = ["blk", "-s", "/tmp/a", "-b", "x", "--print-qemu-args"]
    program = [sys.executable, "-m", "vhost_user.program.main", "run", *argv]
    result = subprocess.run(
        program, env=os.environ | {"PATH": ""}, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert ",reconnect-ms=1000 " in result.stdout
    line = refusal("run", *argv, "--qemu", "no-such-qemu")
    assert line.endswith(
        "there is no QEMU 'no-such-qemu' here to be asked for its version; give another --qemu"
    )


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("ByMethod", "num_vqs=2,config_size=24,chardev=by-method--1st0"),
        ("ByObject", "num_vqs=3,config_size=24,chardev=device1st0"),
        ("Without", "num_vqs=2,chardev=echo0"),
    ],
)
def test_qemu_is_told_how_a_device_of_ones_own_is(device: str, expected: str) -> None:
    result = run("run", f"tests.qemu.own_devices:{device}", "-s", "/tmp/a", "--print-qemu-args")
    assert result.stdout.endswith(f"-device vhost-user-test-device-pci,virtio-id=3,{expected}\n")


def test_configuration_space_that_cannot_be_read_is_said_in_one_line(directory: Path) -> None:
    (directory / "mine.py").write_text(
        f"{OWN_DEVICE}\n    def read_config(self, offset, size):\n        1 // 0\n"
    )
    result = run("run", "mine:Hello", "-s", "/tmp/a", "--print-qemu-args", cwd=directory)
    assert result.returncode == 1
    assert result.stderr == (
        "vhost-user run mine:Hello: the configuration space of Hello cannot be read: ZeroDivisionError: "
        "integer division or modulo by zero; override qemu_device() to say its config_size\n"
    )


@pytest.mark.parametrize(
    "argv", [["list"], ["run", "rng", "--print-capabilities"], ["run", "rng", "-s", "a", "--print-qemu-args"]]
)
def test_output_that_nobody_takes(argv: list[str]) -> None:
    program = [sys.executable, "-m", "vhost_user.program.main", *argv]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "cannot write to standard output: No space left on device" in result.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            program, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
    assert (result.returncode, result.stderr) == (141, "")


def test_output_that_the_encoding_has_no_character_for() -> None:
    """As of a terminal with another encoding than the name of the socket."""
    result = subprocess.run(
        [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "-s", "/tmp/ä", "--print-qemu-args"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    told = "cannot write '\\xe4' to standard output, which is ascii; "
    assert line.endswith(f"{told}set PYTHONIOENCODING=utf-8")


def test_path_that_is_in_no_encoding_is_printed_as_it_is() -> None:
    path = os.fsdecode(b"/tmp/\xff")
    argv = [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "-s", path, "--print-qemu-args"]
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        result = subprocess.run(argv, env=environment, capture_output=True, timeout=SECONDS, check=True)
        assert b"path=/tmp/\xff'" in result.stdout


def test_device_is_to_be_given() -> None:
    assert refusal("run", code=2).startswith("vhost-user run: the following arguments are required: DEVICE;")


@pytest.mark.parametrize("argv", [[], ["-s", "a", "--fd", "3"], ["-s", "a", "--connect", "b"]])
def test_one_socket_is_to_be_given(argv: list[str]) -> None:
    line = refusal("run", "rng", *argv, code=2)
    assert "give one of --socket-path, --fd and --connect; see vhost-user run rng --help" in line


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-m", "0"], "argument -m/--max-bytes: '0' is not a number from 1"),
        (["-p", "soon"], "argument -p/--period: 'soon' is no time; write it as 20ms"),
        (["--fd", "-1"], "argument --fd: '-1' is not a number from 0"),
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        (
            ["--without", "SPEED"],
            "argument --without: 'SPEED' is not a feature of rng; there are NOTIFY_ON_EMPTY, ",
        ),
        (["--without", "NONE"], "argument --without: 'NONE' is not a feature"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_options_are_named(argv: list[str], text: str) -> None:
    assert text in refusal("run", "rng", "-s", "/tmp/a", *argv, code=2)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ["-s", "/none/s"],
            "cannot listen on /none/s: No such file or directory; create the directory first",
        ),
        (["-s", "/tmp/" + "x" * 200], "a socket's path has at most 107 bytes; choose a shorter one"),
        (["-s", ""], "cannot listen on '': a socket needs a path; choose one"),
        (["--connect", ""], "cannot connect to '': a socket needs a path; choose one"),
        (["--connect", "/tmp/" + "x" * 200], "a socket's path has at most 107 bytes; choose a shorter one"),
        (["--fd", "99"], "descriptor 99 is no socket: Bad file descriptor; pass --fd a UNIX stream socket"),
        (["-s", "/tmp/a", "-f", "/none"], "cannot read /none: No such file or directory"),
        (["--fd", "0", "--print-qemu-args"], "--print-qemu-args needs the path of the socket"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(argv: list[str], text: str) -> None:
    assert text in refusal("run", "rng", *argv)


@pytest.mark.parametrize("kind", [Path.mkdir, Path.touch])
def test_what_is_no_socket_is_left_alone(directory: Path, kind: Callable[[Path], None]) -> None:
    kind(directory / "s")
    line = refusal("run", "rng", "-s", str(directory / "s"))
    assert line.endswith("something that is not a socket is there; remove it or choose another path")
    assert (directory / "s").exists()


def test_socket_that_neither_listens_nor_is_connected() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        argv = command("rng", "--fd", str(sock.fileno()))
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=SECONDS, check=False, pass_fds=[sock.fileno()]
        )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("neither listens nor is connected; pass --fd a UNIX stream socket")


def test_file_in_the_socket_s_place_is_said_in_one_line(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    line = refusal("run", "rng", "-s", str(path))
    assert line.endswith(f"{path}: something that is not a socket is there; remove it or choose another path")
    assert path.exists()


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


def test_device_of_another_package(directory: Path) -> None:
    """One that is installed with an entry point of ours is run by its name."""
    (directory / "mine.py").write_text(OWN_DEVICE)
    info = directory / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vhost_user.devices]\nhello = mine:Hello\n")
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    for argv, text in (
        (["list"], "hello: Says hello.\n    QEMU: vhost-user-test-device-pci"),
        (["run", "hello", "--print-capabilities"], '"console"'),
    ):
        program = [sys.executable, "-m", "vhost_user.program.main", *argv]
        result = subprocess.run(
            program, capture_output=True, text=True, timeout=SECONDS, check=True, env=environment
        )
        assert text in result.stdout

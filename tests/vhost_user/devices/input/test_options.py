"""vhost-user-input as a program: options, errors of one line, several devices, control, standard input."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.program.command_line import UserError
from protocol.virtio.input import EVENT, Event
from protocol.virtio.input_codes import KEYS, EventType, Led, Rel
from tests.rig.programs import process
from tests.rig.programs.backend import command, until_printed
from tests.vhost_user.devices.input.hands import SECONDS, next_report
from vhost_user.devices.input.options import InputProgram
from vhost_user.devices.input.pointers import Size
from vhost_user.frontend import connect
from vhost_user.program.options import parse_options
from vhost_user.simulation import control_client
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from vhost_user.frontend import DriverQueue


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("input", *arguments), capture_output=True, text=True, timeout=60, check=False
    )


def options(*arguments: str) -> argparse.Namespace:
    return parse_options(InputProgram(), "vhost-user-input", ["-s", "/tmp/input.sock", *arguments])


def test_options_of_the_c_and_rust_programs() -> None:
    long = options("--evdev-path", "/dev/input/event3", "--no-grab")
    assert long == options("-p", "/dev/input/event3", "-n")
    assert InputProgram().socket_paths(long) == ["/tmp/input.sock"]
    for several in (options("--event-list", "/dev/a,/dev/b"), options("-e", "/dev/a,/dev/b")):
        assert several.event_list == ["/dev/a", "/dev/b"]
        assert InputProgram().socket_paths(several) == ["/tmp/input.sock0", "/tmp/input.sock1"]
    assert InputProgram().socket_paths(options("-e", "/dev/a")) == ["/tmp/input.sock0"]


def test_simulated_devices_have_a_socket_each() -> None:
    given = options("--mouse", "--touchscreen", "--keyboard", "--slots", "3", "--size", "800x600", "--repeat")
    assert InputProgram().socket_paths(given) == ["/tmp/input.sock0", "/tmp/input.sock1", "/tmp/input.sock2"]
    devices = InputProgram().make(given)
    names = [device.source.description.name for device in devices]
    assert names == ["qemu-companion mouse", "qemu-companion touch screen", "qemu-companion keyboard"]
    assert len({id(device.simulation) for device in devices}) == 1
    assert devices[1].source.description.axes[0x2F].maximum == 2
    assert given.size == Size(800, 600)
    assert EventType.REP in devices[2].source.description.events
    assert InputProgram().socket_paths(options("--tablet")) == ["/tmp/input.sock"]


def test_qemu_is_told_of_all_devices_at_once() -> None:
    result = run("-s", "/tmp/in,put.sock", "--keyboard", "--tablet", "--print-qemu-args")
    assert result.returncode == 0
    words = shlex.split(result.stdout)
    assert words[words.index("-chardev") :] == [
        *("-chardev", "socket,id=input0,path=/tmp/in,,put.sock0", "-device"),
        *("vhost-user-input-pci,chardev=input0", "-chardev", "socket,id=input1,path=/tmp/in,,put.sock1"),
        *("-device", "vhost-user-input-pci,chardev=input1"),
    ]
    assert words.count("-m") == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "give simulated devices (--keyboard, --mouse, --tablet, --touchscreen), or --evdev-path, or"),
        (("--keyboard", "-p", "/dev/null"), "give simulated devices"),
        (("--mouse", "--mouse"), "there can be one simulated device of each kind; start another program"),
        (("-p", "/dev/null", "--script", "x"), "a script or --control is for simulated devices; add --keyb"),
        (("-p", "/dev/null", "--control", "x"), "a script or --control is for simulated devices; add --key"),
        (
            ("--keyboard", "--script", "/none"),
            "cannot read the script /none: No such file or directory; give",
        ),
        (
            ("-p", "/dev/input/none"),
            "cannot open /dev/input/none: there is no such file; /proc/bus/input/dev",
        ),
        (
            ("-p", "/dev/null"),
            "cannot open /dev/null: it is not an input device; give one of /dev/input/event*",
        ),
        (
            ("-e", "/dev/null,/dev/null"),
            "cannot open /dev/null: it is not an input device; give one of /dev/in",
        ),
    ],
)
def test_error_says_what_to_do(arguments: Sequence[str], error: str) -> None:
    with pytest.raises(UserError) as found:
        InputProgram().make(options(*arguments))
    assert str(found.value).startswith(error)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--size", "0x5"), "argument --size: '0x5' is not a size; write it as 1920x1080, at most 32768"),
        (("--pace", "5"), "argument --pace: '5' is not a time; write it as 20ms, 500us or 1.5s"),
        (("-e", "/dev/a,,/dev/b"), "argument -e/--event-list: '/dev/a,,/dev/b' names no devices; write them"),
    ],
)
def test_wrong_argument_says_what_to_write(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], error: str
) -> None:
    with pytest.raises(SystemExit):
        options("--keyboard", *arguments)
    told = capsys.readouterr().err
    assert told.startswith(f"vhost-user-input: {error}")
    assert len(told.splitlines()) == 1


def test_error_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = run("--socket-path", str(tmp_path / "socket"), "-e", "/dev/null,/dev/null")
    assert result.returncode == 1
    assert result.stderr.startswith("vhost-user run input: cannot open /dev/null: it is not an input device;")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_several_devices_need_a_path() -> None:
    given = parse_options(InputProgram(), "input", ["--connect", "/tmp/qemu.sock", "--keyboard", "--mouse"])
    with pytest.raises(UserError, match="2 devices need a socket each; give --socket-path PATH for PATH0"):
        InputProgram().make(given)


def test_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "event0"
    path.touch(mode=0)
    if os.geteuid() == 0:  # whom no mode stops
        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot open .*: permission denied; be in the group input, or root"):
        InputProgram().make(options("-p", str(path)))


def refuse(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evdev", None)
    with pytest.raises(
        UserError, match=r"needs the package evdev; run pip install 'qemu-companion\[input\]'"
    ):
        InputProgram().make(options("-p", "/dev/input/event0"))


def test_simulated_devices_need_no_package() -> None:
    code = "import sys; sys.modules['evdev'] = None; from vhost_user.program import main; "
    code += "sys.exit(main.input(['-s', '/tmp/x', '--keyboard', '--mouse', '--print-qemu-args']))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@asynccontextmanager
async def started(
    directory: Path, *arguments: str, stdin: str = os.devnull
) -> AsyncIterator[process.Program]:
    """Run it with a socket in `directory`; the block begins when it listens."""
    argv = command("input", "--socket-path", str(directory / "sock"), *arguments)
    async with process.start(["sh", "-c", 'exec <"$0" "$@"', stdin, *argv]) as program:
        await until_printed(program, "listening on", max(sum(map(is_kind, arguments)), 1))
        yield program
        program.terminate()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0


def is_kind(argument: str) -> bool:
    return argument in {"--keyboard", "--mouse", "--tablet", "--touchscreen"}


@asynccontextmanager
async def driver(path: Path) -> AsyncIterator[tuple[DriverQueue, DriverQueue]]:
    """Drive a device; return its queue of events and that of status events."""
    async with connect(path) as front:
        await front.negotiate()
        yield await front.start_queue(), await front.start_queue(1)


async def test_lines_on_standard_input_are_done_by_several_devices(directory: Path) -> None:
    fifo = str(directory / "fifo")
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR)
    lines = b"type a\nmove 1 2\nnonsense\nwait led capslock on\npress B\n"
    async with (
        started(directory, "--keyboard", "--mouse", "--script", "-", "--print-events", stdin=fifo) as program,
        driver(directory / "sock0") as (keyboard, status),
        driver(directory / "sock1") as (mouse, _),
    ):
        os.write(fd, lines)
        a, b = KEYS["A"], KEYS["B"]
        moved = mouse.submit(EVENT.size)  # the script begins when both drivers are ready
        assert await next_report(keyboard) == [(EventType.KEY, a, 1)]
        assert await next_report(keyboard) == [(EventType.KEY, a, 0)]
        assert Event.decode(await mouse.wait(moved)) == (EventType.REL, Rel.X, 1)
        assert await next_report(mouse) == [(EventType.REL, Rel.Y, 2)]
        await status.request(Event(EventType.LED, Led.CAPSL, 1).encode())
        assert await next_report(keyboard) == [(EventType.KEY, b, 1)]
        assert await next_report(keyboard) == [(EventType.KEY, b, 0)]
        os.close(fd)
        await until_printed(program, "the script is at its end")
        await until_printed(
            program, '{"event": "led", "on": "keyboard", "data": {"led": "CAPSL", "on": true}}'
        )
        assert "the script's line 3: there is no command 'nonsense'" in program.output()


async def test_control_does_what_scripts_do(directory: Path) -> None:
    control = str(directory / "control")
    async with (
        started(directory, "--keyboard", "--tablet", "--size", "64x64", "--control", control),
        driver(directory / "sock0") as (keyboard, status),
        driver(directory / "sock1") as (tablet, _),
        control_client.connect(control) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.call, "press", on="keyboard", keys="A"))
            assert await next_report(keyboard) == [(EventType.KEY, KEYS["A"], 1)]
            assert await next_report(keyboard) == [(EventType.KEY, KEYS["A"], 0)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.call, "run", script="point 5 6\npress B"))
            assert [event.value for event in await next_report(tablet)] == [5, 6]
            assert await next_report(keyboard) == [(EventType.KEY, KEYS["B"], 1)]
            assert await next_report(keyboard) == [(EventType.KEY, KEYS["B"], 0)]
        async with control_client.connect(control) as other:
            await other.subscribe()
            await status.request(Event(EventType.LED, Led.NUML, 1).encode())
            event = await other.next_event()
            assert (event.name, event.on, event.data) == ("led", "keyboard", {"led": "NUML", "on": True})
            assert await other.call("leds", on="keyboard") == ["NUML"]
            with pytest.raises(CallError, match="line 2: 64 0 is outside of 64x64"):
                await other.call("run", script="sleep 0s\npoint 64 0")
            with pytest.raises(CallError, match="a US keyboard has no key for 'ö'"):
                await other.call("type_text", on="keyboard", text="schön")

"""The command line of networks in the program's own process: what it makes, and what it refuses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from tests.rig.programs import pcapng
from vhost_user.devices.net import options as net_options
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import NONE, Impairments
from vhost_user.devices.net.ports.network import NetworkPort
from vhost_user.devices.net.ports.pcap import CapturedPort
from vhost_user.devices.net.ports.switch import Link, Switch
from vhost_user.devices.net.simulation import LineSimulation, SwitchPortSimulation
from vhost_user.devices.net.switch_options import with_lines

if TYPE_CHECKING:
    from pathlib import Path


def options(*argv: str, control: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    net_options.add_options(parser)
    parsed = parser.parse_args(argv)
    parsed.control = control
    return parsed


def test_switch_has_a_port_for_each_socket() -> None:
    ports = net_options.make_ports(options("--switch", "--queues", "2"), 3)
    assert [type(port) for port in ports] == [NetworkPort] * 3
    (network,) = {port.network for port in ports if isinstance(port, NetworkPort)}
    assert isinstance(network, Switch)
    assert [port.queue_pairs for port in ports] == [2, 2, 2]


def test_link_has_two_ends() -> None:
    first, second = net_options.make_ports(options("--link"), 2)
    assert isinstance(first, NetworkPort)
    assert isinstance(first.network, Link)
    assert first.network.ports == [first, second]


@pytest.mark.parametrize(
    ("argv", "count", "message"),
    [
        (["--switch"], 1, "--switch connects two guests or more; give --socket-count N, for a socket each"),
        (["--link"], 3, "--link connects two guests; give --socket-count 2, for a socket each"),
        (["--link", "--switch"], 2, "--switch, --link, to plug the device into"),
        (["--switch", "--reorder", "1%"], 2, "reorder needs a delay"),
        (["--switch", "--jitter", "1ms"], 2, "jitter"),
        (
            ["--switch", "--pcap", "/none/file"],
            2,
            "cannot write to /none/file: No such file or directory; give",
        ),
    ],
)
def test_what_cannot_be(argv: list[str], count: int, message: str) -> None:
    with pytest.raises(UserError) as failure:
        net_options.make_ports(options(*argv), count)
    assert message in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--loss", "120%"), ("--delay", "5"), ("--rate", "quick"), ("--corrupt", "-1")]
)
def test_values_that_cannot_be(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(f"{option}={value}")
    assert option in capsys.readouterr().err


def test_addresses_after_the_first_are_no_groups() -> None:
    given = options("--switch", "--mac", "fe:ff:ff:ff:ff:ff")
    assert net_options.mac_of(given, 0, "net.sock0") == b"\xfe\xff\xff\xff\xff\xff"
    with pytest.raises(UserError, match="--mac fe:ff:ff:ff:ff:ff has too few addresses after it"):
        net_options.mac_of(given, 1, "net.sock1")


def test_each_frame_goes_over_one_bad_line_of_a_network_of_ours() -> None:
    given = {
        "loss": "5%",
        "delay": "20ms",
        "jitter": "0.5ms",
        "reorder": "1%",
        "duplicate": ".5%",
        "corrupt": "0",
        "rate": "10Mbit",
    }
    argv = [f"--{name}={value}" for name, value in given.items()]
    ports = net_options.make_ports(options("--switch", *argv, "--seed", "4"), 2)
    wanted = Impairments(
        loss=0.05, delay=0.02, jitter=0.0005, reorder=0.01, duplicate=0.005, corrupt=0.0, rate=1e7
    )
    for port in ports:
        assert isinstance(port, ImpairedPort)
        assert isinstance(port.simulation, SwitchPortSimulation)
        assert (port.from_guest.line.settings, port.to_guest.line.settings) == (wanted, NONE)


def test_another_host_is_impaired_both_ways() -> None:
    class Other(NetworkPort.__base__):  # type: ignore[name-defined,misc]
        pass

    (port,) = with_lines(options("--loss", "5%"), [Other()])
    assert isinstance(port, ImpairedPort)
    assert isinstance(port.simulation, LineSimulation)
    assert port.from_guest.line.settings == port.to_guest.line.settings == Impairments(loss=0.05)


def test_lines_can_be_changed_where_there_is_a_control_socket() -> None:
    ports = net_options.make_ports(options("--link", control="/tmp/control"), 2)
    assert [type(port) for port in ports] == [ImpairedPort] * 2


def test_ports_are_closed_where_a_capture_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(NetworkPort, "close", lambda port: closed.append(port.number))
    with pytest.raises(UserError):
        net_options.make_ports(options("--switch", "--loss", "1%", "--pcap", "/none/file"), 2)
    assert closed == [0, 1]


def test_capture(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    ports = net_options.make_ports(options("--switch", "--pcap", str(path)), 2)
    assert [type(port) for port in ports] == [CapturedPort] * 2
    for port in ports:
        port.close()
    assert pcapng.read(path.read_bytes()) == []

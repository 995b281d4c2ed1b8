"""A device as a program: what a class says itself, and what needs a DeviceProgram."""

from __future__ import annotations

import argparse
from typing import Any, Self

import pytest

from protocol.program.command_line import UserError
from tests.vhost_user.echo import Echo
from vhost_user import DeviceProgram, VirtioDevice
from vhost_user.device.device import VirtioDevice as Documented
from vhost_user.devices.blk.device import Blk
from vhost_user.devices.blk.options import BlkProgram
from vhost_user.program.installed import program_of

MOST_MEMBERS = 32


class Sized(Echo):
    """Has an option.

    And says more about itself.
    """

    name = "sized"
    capabilities = ("size",)

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.size = size

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--size", type=int)

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(options.size)

    @classmethod
    def qemu_device(cls, options: argparse.Namespace) -> str:
        return f"sized-pci,size={options.size}"


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"socket_path": "/tmp/s", "socket_count": None, "number": 0} | given)


def test_class_of_a_device_is_small() -> None:
    """Everything that its author may have to know."""
    members = {name for kind in Documented.__mro__[:-1] for name in [*vars(kind), *kind.__annotations__]}
    assert len({name for name in members if not name.startswith("_")}) <= MOST_MEMBERS


def test_class_says_itself_what_its_program_is() -> None:
    program = DeviceProgram(Sized)
    parser = argparse.ArgumentParser()
    program.add_options(parser)
    given = parser.parse_args(["--size", "7"])
    (device,) = program.make(given)
    assert isinstance(device, Sized)
    assert device.size == 7
    assert program.qemu_attachment(given, "c", ",x=y") == "-device sized-pci,size=7,x=y,chardev=c"
    assert (program.name, program.summary, program.capabilities) == ("sized", "Has an option.", ("size",))


def test_class_without_options_is_made_without_any() -> None:
    (device,) = DeviceProgram(Echo).make(options())
    assert type(device) is Echo


def test_device_without_a_docstring_is_called_by_its_class() -> None:
    kind: Any = type("Plain", (VirtioDevice,), {"device_id": 63})
    assert DeviceProgram(kind).summary == "Plain"
    kind.__doc__ = " \n "
    assert DeviceProgram(kind).summary == "Plain"


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("many_sockets", "many_sockets"),
        ("for_one_guest", "for_one_guest"),
        ("socket_paths", "socket_paths"),
        ("all_from_options", "make"),
    ],
)
def test_what_only_a_program_can_say_is_not_left_out_silently(name: str, new: str) -> None:
    kind: Any = type("Many", (Echo,), {name: True})
    with pytest.raises(UserError, match=f"Many.{name} is not used: .* with device = Many and {new},"):
        DeviceProgram(kind)


def test_paths_are_numbered_where_there_may_be_several() -> None:
    class Several(DeviceProgram):
        device = Echo
        many_sockets = True

    assert DeviceProgram(Echo).socket_paths(options()) == ["/tmp/s"]
    assert Several().socket_paths(options()) == ["/tmp/s"]
    assert Several().socket_paths(options(socket_count=2)) == ["/tmp/s0", "/tmp/s1"]
    assert Several().socket_paths(options(socket_path=None)) == []


def test_class_derived_from_one_of_ours_has_its_options() -> None:
    class OwnBlk(Blk):
        """A disk of one's own."""

    program = program_of(OwnBlk)
    assert isinstance(program, BlkProgram)
    assert program.device is OwnBlk
    assert type(program_of(Blk)) is BlkProgram
    assert type(program_of(Echo)) is DeviceProgram


def test_class_derived_from_one_of_ours_may_have_options_of_its_own() -> None:
    class OwnBlk(Blk):
        """A disk of one's own."""

        @classmethod
        def add_options(cls, parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--nothing")

        @classmethod
        def from_options(cls, options: argparse.Namespace) -> VirtioDevice:
            return Echo()

    program = program_of(OwnBlk)
    parser = argparse.ArgumentParser()
    program.add_options(parser)
    assert [action.dest for action in parser._actions] == ["help", "nothing"]
    assert [type(device) for device in program.make(parser.parse_args([]))] == [Echo]

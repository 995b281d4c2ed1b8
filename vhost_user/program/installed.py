"""The installed devices: ours, and those of other packages, which cannot harm others.

Another package adds a device by an entry point, NAME = "MODULE:CLASS" in the group vhost_user.devices.
What is wrong with one, from its metadata to its command line, is a UserError that names it: `find()`
raises it to whoever asks for that device, `find_all()` returns it beside the other devices.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError
from protocol.virtio.ids import DeviceId
from vhost_user.device import VirtioDevice
from vhost_user.device_program import DeviceProgram
from vhost_user.devices import DEVICES
from vhost_user.own_code.class_loading import code_of_others, load_class
from vhost_user.program.options import parser_and_own_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution

GROUP = "vhost_user.devices"
"""The entry-point group by which other packages add devices."""


@dataclass(frozen=True)
class Entry:
    """An entry point of another package."""

    name: str
    where: str
    """Its value, MODULE:CLASS if it is well-formed."""
    package: str

    def load(self) -> DeviceProgram:
        """Return the program of the device. Raises UserError, which names the device and the package."""
        with self.named():
            program = load_program(self.where.partition("[")[0].strip())
            parser_and_own_options(program, self.name)
            return program

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the device and its package in a UserError that the block raises."""
        try:
            yield
        except UserError as error:
            raise UserError(
                f"the device '{self.name}' of the package {self.package} cannot be used: {error}"
                " (update or uninstall the package)"
            ) from error


def device_names() -> list[str]:
    """Return the names of all devices that are installed."""
    return sorted({*DEVICES, *_entries()[0]})


def find(name: str) -> DeviceProgram:
    """Return the program of the device `name`, or of MODULE:CLASS. Raises UserError."""
    if where := DEVICES.get(name):
        return load_program(where)
    if ":" in name:
        return load_program(name)
    found = _entries()[0].get(name)
    if found is None:
        raise UserError(
            f"there is no device '{name}'; give one of {', '.join(device_names())}, or MODULE:CLASS"
        )
    return _only(found).load()


def find_all() -> tuple[dict[str, DeviceProgram], dict[str, Entry], list[UserError]]:
    """Return all devices that can be used by their names, the entry points of others, and all errors."""
    programs = {name: load_program(where) for name, where in DEVICES.items()}
    entries: dict[str, Entry] = {}
    by_name, errors = _entries()
    for name, found in by_name.items():
        try:
            if name in DEVICES:
                raise UserError(
                    f"the device '{name}' of the package {found[0].package} is hidden by ours; 'vhost-user"
                    f" run {found[0].where}' runs it (the package should give it another name)"
                )
            programs[name] = _only(found).load()
            entries[name] = found[0]
        except UserError as error:
            errors.append(error)
    return dict(sorted(programs.items())), entries, errors


def program_of(device: type[VirtioDevice]) -> DeviceProgram:
    """Return the program of a device class; one derived from a device of ours has that one's options.

    Raises UserError where it cannot have one.
    """
    for base in device.__mro__:
        for where in DEVICES.values():
            if base.__module__.startswith(where.partition(":")[0].removesuffix(".options")):
                program = load_program(where)
                if program.device is base:
                    return type(program)(device)
    return DeviceProgram(device)


def load_program(where: str) -> DeviceProgram:
    """Return the program of the class MODULE:CLASS: a device, or a DeviceProgram. Raises UserError."""
    found = load_class(where, "device")
    module_name, _, class_name = where.partition(":")
    with code_of_others(f"cannot use {where}"):
        if not isinstance(found, type) or not issubclass(found, VirtioDevice | DeviceProgram):
            raise UserError(
                f"{module_name} has no device class {class_name}; one is derived from VirtioDevice"
            )
        if issubclass(found, DeviceProgram):
            if not hasattr(found, "device"):
                raise UserError(f"{where} has no device; set it to a class derived from VirtioDevice")
            _check(found.device, found.device.__name__)
            return found()
        _check(found, where)
        return program_of(found)


def _check(device: type[VirtioDevice], where: str) -> None:
    """Raise UserError where something is missing from a device class."""
    if not hasattr(device, "device_id"):
        raise UserError(f"{where} has no device_id; set it to one of vhost_user.DeviceId")
    if not isinstance(device.device_id, DeviceId):  # set after the class was made
        raise UserError(f"the device_id of {where} is not a type of device; set it to one in the class")
    if device.run_queue is VirtioDevice.run_queue:
        raise UserError(f"{where} has no run_queue(); write that method to serve its queues")


def _only(found: list[Entry]) -> Entry:
    """Return the only entry point of a name. Raises UserError where there are several."""
    first, *others = sorted(found, key=lambda entry: (entry.package, entry.where))
    if others:
        packages = " and ".join(sorted({entry.package for entry in found}))
        places = ", ".join(entry.where for entry in (first, *others))
        raise UserError(
            f"the device '{first.name}' is installed {len(found)} times, by {packages} ({places}); uninstall"
            " one, or give MODULE:CLASS"
        )
    return first


def _entries() -> tuple[dict[str, list[Entry]], list[UserError]]:
    """Return the entry points of all packages by their names, and what is wrong with packages."""
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    errors: list[UserError] = []
    seen: set[str] = set()
    for distribution in distributions():
        package = _name(distribution)
        key = package.lower().replace("-", "_").replace(".", "_")
        if key in seen:
            continue  # another one on the path hides it
        seen.add(key)
        try:
            with code_of_others(f"cannot read the entry points of the package {package}"):
                for point in distribution.entry_points:
                    if point.group == GROUP:
                        found[point.name].append(Entry(point.name, point.value, package))
        except UserError as error:
            errors.append(UserError(f"{error} (update or uninstall the package)"))
    return dict(sorted(found.items())), errors


def _name(distribution: Distribution) -> str:
    """Return the name of a package; where it has none, the place of its metadata."""
    try:
        name = distribution.metadata["Name"]
    except Exception:
        name = None
    return name or str(getattr(distribution, "_path", "without a name"))

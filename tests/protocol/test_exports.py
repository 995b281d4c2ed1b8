"""The public names of every package: listed, there, documented."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PACKAGES = [
    "ivshmem_server",
    "protocol",
    "protocol.io",
    "protocol.ivshmem",
    "protocol.vhost_user",
    "protocol.vhost_user.messages",
    "protocol.program",
    "protocol.virtio",
    "vhost_user",
    "vhost_user.devices.blk",
    "vhost_user.devices.console",
    "vhost_user.devices.gpio",
    "vhost_user.devices.i2c",
    "vhost_user.devices.input",
    "vhost_user.devices.net",
    "vhost_user.devices.vsock",
    "vhost_user.frontend",
    "vhost_user.program",
    "vhost_user.simulation",
    "vhost_user.trace",
]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def exports(package: ModuleType) -> list[str]:
    return list(getattr(package, "__all__", []))


def test_every_export_is_there(package: ModuleType) -> None:
    assert [name for name in exports(package) if not hasattr(package, name)] == []


def test_everything_public_is_exported(package: ModuleType) -> None:
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert public - set(exports(package)) == set()


def test_exports_are_listed_once(package: ModuleType) -> None:
    assert len(exports(package)) == len(set(exports(package)))


def test_exported_classes_and_functions_are_documented(package: ModuleType) -> None:
    ours = [getattr(package, name) for name in exports(package)]
    undocumented = [
        thing.__qualname__
        for thing in ours
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not inspect.getdoc(thing)
    ]
    assert undocumented == []


def test_package_says_what_it_holds(package: ModuleType) -> None:
    assert package.__doc__
    assert package.__doc__.splitlines()[0].endswith((".", ":"))

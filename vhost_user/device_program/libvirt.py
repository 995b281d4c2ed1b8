"""libvirt's XML for a guest with a device (--print-libvirt-xml)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from xml.etree import ElementTree as ET

from protocol.virtio.ids import DeviceId
from vhost_user.device_program import qemu_args

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

_SLOTS = {
    DeviceId.RNG: 0x1D,
    DeviceId.I2C_ADAPTER: 0x1C,
    DeviceId.GPIO: 0x1B,
    DeviceId.VSOCK: 0x1A,
    DeviceId.CONSOLE: 0x19,
    DeviceId.INPUT: 0x18,
}
"""Slots of the PCI root bus for devices that libvirt does not know. libvirt numbers its own from below, and
QEMU makes these first: without a slot, such a device would take the place of one of libvirt's."""

_OTHER_SLOT = 0x10
"""The slot of any other type."""

ET.register_namespace("qemu", QEMU_NAMESPACE)


class LibvirtAttachable(qemu_args.Attachable, Protocol):
    """What is attached: the program of a device."""

    def libvirt_element(self, options: argparse.Namespace) -> ET.Element | None:
        """Return libvirt's element for the device at `options.socket_path`; None where libvirt has none."""


def libvirt_xml(program: LibvirtAttachable, sockets: Sequence[argparse.Namespace]) -> str:
    """Return the children of <domain> for a guest with this device: shared memory, and the device.

    `sockets` are those of `qemu_args.for_each_socket()`. Each device is for a guest of its own, with a
    comment that names its socket, unless the program says that all are for one. Raises UserError.
    """
    if program.for_one_guest:
        return _in_domain([_device(program, options) for options in sockets])
    texts = [_in_domain([_device(program, options)]) for options in sockets]
    if len(texts) == 1:
        return texts[0]
    return "\n".join(
        f"<!-- the guest at {options.socket_path.replace('--', '- -')} -->\n{text}"
        for options, text in zip(sockets, texts, strict=True)
    )


def disk(options: argparse.Namespace, driver: Mapping[str, object]) -> ET.Element | None:
    """Return a <disk> with further attributes of <driver>; None with --connect, which libvirt cannot do."""
    if options.connect is not None:
        return None
    element = ET.Element("disk", type="vhostuser", device="disk")
    ET.SubElement(element, "driver", {"name": "qemu", "type": "raw"} | _driver(options, driver))
    add_source(element, options)
    ET.SubElement(element, "target", dev="vda", bus="virtio")
    return element


def interface(options: argparse.Namespace, mac: str, driver: Mapping[str, object]) -> ET.Element:
    """Return an <interface> with the attributes of its <driver>."""
    element = ET.Element("interface", type="vhostuser")
    ET.SubElement(element, "mac", address=mac)
    add_source(element, options, mode="client" if options.connect is None else "server")
    ET.SubElement(element, "model", type="virtio")
    if attributes := _driver(options, driver):
        ET.SubElement(element, "driver", attributes)
    return element


def add_source(element: ET.Element, options: argparse.Namespace, **attributes: str) -> None:
    """Add the socket; QEMU connects to it again whenever the back-end has ended."""
    path = str(Path(options.socket_path).absolute())
    source = ET.SubElement(element, "source", {"type": "unix", "path": path} | attributes)
    if options.connect is None:
        ET.SubElement(source, "reconnect", enabled="yes", timeout="1")


def _driver(options: argparse.Namespace, wanted: Mapping[str, object]) -> dict[str, str]:
    found = {name: str(value) for name, value in wanted.items() if value is not None}
    return found | ({"iommu": "on", "ats": "on"} if options.iommu else {})


def _device(program: LibvirtAttachable, options: argparse.Namespace) -> ET.Element | list[str]:
    """Return libvirt's element for a device, or QEMU's options where it has none."""
    element = program.libvirt_element(options)
    if element is not None:
        return element
    place = _SLOTS.get(program.device_id, _OTHER_SLOT) - options.number * program.for_one_guest
    return shlex.split(qemu_args.attachment(program, options, f",addr={place:#x}"))


def _in_domain(devices: list[ET.Element | list[str]]) -> str:
    """Return the children of a <domain>."""
    memory = ET.Element("memoryBacking")
    ET.SubElement(memory, "source", type="memfd")
    ET.SubElement(memory, "access", mode="shared")
    own, commandline = ET.Element("devices"), ET.Element(f"{{{QEMU_NAMESPACE}}}commandline")
    for one in devices:
        if isinstance(one, ET.Element):
            own.append(one)
        else:
            for word in one:
                ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    texts = []
    for element in (memory, *(each for each in (own, commandline) if len(each))):
        ET.indent(element)
        texts.append(ET.tostring(element, encoding="unicode"))
    return "\n".join(texts)

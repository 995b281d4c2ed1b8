"""--print-libvirt-xml."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.vhost_user.program.cli_program import refusal, run


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

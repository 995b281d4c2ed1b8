"""An ivshmem device inside a Linux guest: memory, doorbell, interrupts. Copy it there; it needs Python alone.

    python3 ivshmem_in_guest.py id
    python3 ivshmem_in_guest.py write OFFSET TEXT
    python3 ivshmem_in_guest.py read OFFSET LENGTH
    python3 ivshmem_in_guest.py ring PEER VECTOR
    python3 ivshmem_in_guest.py wait VECTOR        (the device is bound to vfio-pci)

On the host, QEMU was given: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on
-chardev socket,path=/tmp/ivshmem_socket,id=iv -device ivshmem-doorbell,chardev=iv,vectors=2
and the guest's kernel: intel_iommu=on. docs/guest.md explains each of them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
from pathlib import Path

_IV_POSITION, _DOORBELL = 2, 3  # registers of BAR0, as indices of 32-bit words

# linux/vfio.h
_VFIO_SET_IOMMU = 0x3B66
_VFIO_GROUP_SET_CONTAINER = 0x3B68
_VFIO_GROUP_GET_DEVICE_FD = 0x3B6A
_VFIO_DEVICE_GET_REGION_INFO = 0x3B6C
_VFIO_DEVICE_SET_IRQS = 0x3B6E
_VFIO_TYPE1V2_IOMMU = 3
_VFIO_IRQ_SET_EVENTFD_TRIGGER = 1 << 2 | 1 << 5
_VFIO_CONFIG_REGION = 7
_VFIO_MSIX = 2
_PCI_COMMAND = 4
_PCI_COMMAND_MEMORY_MASTER = 2 | 4


def find_device() -> Path:
    """Return the sysfs directory of the first ivshmem device. Exits where there is none."""
    for device in Path("/sys/bus/pci/devices").iterdir():
        ids = (device / "vendor").read_text(), (device / "device").read_text()
        if ids == ("0x1af4\n", "0x1110\n"):
            return device
    sys.exit("no ivshmem device (1af4:1110): was QEMU given -device ivshmem-doorbell?")


def map_bar(device: Path, number: int) -> memoryview:
    """Return BAR `number`, mapped. Needs no driver; Linux refuses while vfio has the device open."""
    start, end, _ = (int(word, 16) for word in (device / "resource").read_text().splitlines()[number].split())
    within = start % mmap.PAGESIZE  # a BAR smaller than a page may begin inside one
    size = end - start + 1
    (device / "enable").write_text("1")
    with (device / f"resource{number}").open("r+b", buffering=0) as file:
        return memoryview(mmap.mmap(file.fileno(), within + size))[within:]


def registers(device: Path) -> memoryview:
    """Return BAR0 as words of 32 bits: each is read and written whole, as the device wants it."""
    return map_bar(device, 0).cast("I")


def ring(device: Path, peer: int, vector: int) -> None:
    """Interrupt `peer` on `vector`; to no effect if there is no such peer."""
    registers(device)[_DOORBELL] = peer << 16 | vector


def open_vfio(device: Path) -> int:
    """Return vfio's descriptor of the device, which is bound to vfio-pci. Raises OSError."""
    group = os.open(f"/dev/vfio/{(device / 'iommu_group').readlink().name}", os.O_RDWR)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, _VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, _VFIO_SET_IOMMU, _VFIO_TYPE1V2_IOMMU)
    vfio: int = fcntl.ioctl(group, _VFIO_GROUP_GET_DEVICE_FD, bytearray(device.name.encode() + b"\0"))
    return vfio


def become_bus_master(vfio: int) -> None:
    """Let the device send messages: MSI-X interrupts are such."""
    region = struct.pack("4I2Q", 32, 0, _VFIO_CONFIG_REGION, 0, 0, 0)
    *_, offset = struct.unpack("4I2Q", fcntl.ioctl(vfio, _VFIO_DEVICE_GET_REGION_INFO, region))
    (command,) = struct.unpack("<H", os.pread(vfio, 2, offset + _PCI_COMMAND))
    os.pwrite(vfio, struct.pack("<H", command | _PCI_COMMAND_MEMORY_MASTER), offset + _PCI_COMMAND)


def listen(vfio: int, vector: int) -> int:
    """Return an eventfd that counts the interrupts of `vector`. Raises OSError if there is no such vector."""
    eventfd = os.eventfd(0)
    request = (24, _VFIO_IRQ_SET_EVENTFD_TRIGGER, _VFIO_MSIX, vector, 1, eventfd)
    fcntl.ioctl(vfio, _VFIO_DEVICE_SET_IRQS, struct.pack("5Ii", *request))
    return eventfd


def shared_memory(device: Path, start: int, size: int) -> memoryview:
    """Return `size` bytes of the shared memory. Exits where it has not as many."""
    memory = map_bar(device, 2)[start : start + size]
    if len(memory) != size:
        sys.exit(f"{size} bytes at {start} are not in the shared memory")
    return memory


def wait(device: Path, vector: int) -> None:
    """Wait for an interrupt on `vector`, and print how many have come."""
    vfio = open_vfio(device)
    become_bus_master(vfio)
    eventfd = listen(vfio, vector)
    print(f"waiting for vector {vector}", flush=True)
    print(f"interrupt on vector {vector}, count {os.eventfd_read(eventfd)}")


def main() -> None:
    """Do what the command line says."""
    device = find_device()
    match sys.argv[1:]:
        case ["id"]:
            print(registers(device)[_IV_POSITION])
        case ["write", offset, text]:
            shared_memory(device, int(offset, 0), len(text.encode()))[:] = text.encode()
        case ["read", offset, length]:
            print(bytes(shared_memory(device, int(offset, 0), int(length, 0))).decode(errors="replace"))
        case ["ring", peer, vector]:
            ring(device, int(peer), int(vector))
        case ["wait", vector]:
            wait(device, int(vector))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(
            f"{error}: run this as root; wait needs a device bound to vfio-pci that has this vector, "
            "everything else one that is bound to no driver"
        )
    except ValueError as error:
        sys.exit(f"{error}: numbers are wanted for offsets, lengths, peers and vectors")

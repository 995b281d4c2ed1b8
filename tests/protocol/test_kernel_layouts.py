"""Our numbers and layouts against the kernel's own headers, as the C compiler understands them.

The compiler's answers come back in debug information, as the enumerators of a C file. ivshmem itself has
no header in the kernel: its registers are QEMU's documentation and are tested against a real QEMU.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.model import Enum
from ivshmem_server.elf.lookup import load_types
from protocol.virtio import pci
from protocol.virtio.pci import CapabilityId, Command, ConfigOffset

if TYPE_CHECKING:
    from pathlib import Path

HEADERS = ["linux/pci_regs.h"]
# The kernel's name for each of our numbers.
KERNEL_NAMES = {
    "PCI_VENDOR_ID": ConfigOffset.VENDOR_ID,
    "PCI_DEVICE_ID": ConfigOffset.DEVICE_ID,
    "PCI_COMMAND": ConfigOffset.COMMAND,
    "PCI_STATUS": ConfigOffset.STATUS,
    "PCI_REVISION_ID": ConfigOffset.REVISION_ID,
    "PCI_BASE_ADDRESS_0": ConfigOffset.BASE_ADDRESS_0,
    "PCI_CAPABILITY_LIST": ConfigOffset.CAPABILITY_LIST,
    "PCI_INTERRUPT_PIN": ConfigOffset.INTERRUPT_PIN,
    "PCI_COMMAND_IO": Command.IO,
    "PCI_COMMAND_MEMORY": Command.MEMORY,
    "PCI_COMMAND_MASTER": Command.MASTER,
    "PCI_COMMAND_INTX_DISABLE": Command.INTX_DISABLE,
    "PCI_CAP_ID_VNDR": CapabilityId.VENDOR_SPECIFIC,
    "PCI_CAP_ID_EXP": CapabilityId.EXPRESS,
    "PCI_CAP_ID_MSIX": CapabilityId.MSIX,
    "PCI_STD_NUM_BARS": pci.BAR_COUNT,
    "PCI_BASE_ADDRESS_SPACE_IO": pci.BAR_IO,
    "PCI_BASE_ADDRESS_MEM_TYPE_MASK": pci.BAR_MEMORY_TYPE_MASK,
    "PCI_BASE_ADDRESS_MEM_TYPE_64": pci.BAR_MEMORY_TYPE_64,
    # The kernel's is a word of the machine, ours has as many bits as it is used with.
    "(long)PCI_BASE_ADDRESS_MEM_MASK": pci.BAR_MEMORY_MASK,
    "PCI_MSIX_FLAGS": pci.MSIX_FLAGS,
    "PCI_MSIX_TABLE": pci.MSIX_TABLE,
    "PCI_MSIX_PBA": pci.MSIX_PBA,
    "PCI_MSIX_FLAGS_QSIZE": pci.MSIX_FLAGS_SIZE_MASK,
    "PCI_MSIX_FLAGS_MASKALL": pci.MSIX_FLAGS_MASK_ALL,
    "PCI_MSIX_FLAGS_ENABLE": pci.MSIX_FLAGS_ENABLE,
    "PCI_MSIX_TABLE_BIR": pci.MSIX_BIR_MASK,
    "PCI_MSIX_ENTRY_SIZE": pci.MSIX_ENTRY_SIZE,
    "PCI_MSIX_ENTRY_LOWER_ADDR": pci.MSIX_ENTRY_ADDRESS_LOW,
    "PCI_MSIX_ENTRY_UPPER_ADDR": pci.MSIX_ENTRY_ADDRESS_HIGH,
    "PCI_MSIX_ENTRY_DATA": pci.MSIX_ENTRY_DATA,
    "PCI_MSIX_ENTRY_VECTOR_CTRL": pci.MSIX_ENTRY_CONTROL,
    "PCI_MSIX_ENTRY_CTRL_MASKBIT": pci.MSIX_ENTRY_CONTROL_MASKED,
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of each name."""
    includes = "".join(f"#include <{header}>\n" for header in HEADERS)
    enumerators = ", ".join(f"number_{i} = {name}" for i, name in enumerate(KERNEL_NAMES))
    source = f"{includes} enum numbers {{ {enumerators} }} numbers;"
    path: Path = tmp_path_factory.mktemp("kernel") / "numbers.o"
    command = ["gcc", "-g", "-c", "-x", "c", "-o", str(path), "-"]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    numbers = load_types(path).find("enum numbers")
    assert isinstance(numbers, Enum)
    return dict(zip(KERNEL_NAMES, (number for _, number in numbers.names), strict=True))


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_number_is_the_kernels(kernel: dict[str, int], name: str) -> None:
    assert KERNEL_NAMES[name] == kernel[name]


def test_every_number_of_ours_is_compared() -> None:
    constants = [value for name, value in vars(pci).items() if name.isupper()]
    members = [*ConfigOffset, *Command, *CapabilityId]
    assert len(KERNEL_NAMES) == len(constants) + len(members)

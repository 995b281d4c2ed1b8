"""What the tests drive: real programs, a real QEMU and its PCI bus, guests."""

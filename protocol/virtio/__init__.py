"""Virtio and PCI: numbers and layouts, no I/O."""

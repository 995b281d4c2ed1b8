"""The attachment of a device to a guest: options of QEMU, XML of libvirt."""

"""What QEMU and libvirt are told to attach a device."""

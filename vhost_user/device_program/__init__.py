"""A device as a program: its options, and its attachment to a guest by QEMU and libvirt."""

from vhost_user.device_program.device_program import DeviceProgram

__all__ = ["DeviceProgram"]

"""A real QEMU without a guest: the test is the driver."""

"""Wire protocols and layouts of QEMU's external devices, without I/O except in protocol.io."""

__version__ = "0.1.0"

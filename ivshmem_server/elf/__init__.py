"""C definitions from the debug information of an ELF file, and the values of memory by them."""

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.model import CType, ElfViewError, Enum, array_of
from ivshmem_server.elf.ctypes.render import SHOWN, render, to_json
from ivshmem_server.elf.lookup import load_types

__all__ = [
    "SHOWN",
    "CType",
    "ElfViewError",
    "Enum",
    "array_of",
    "decode",
    "load_types",
    "render",
    "to_json",
]

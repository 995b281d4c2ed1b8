"""The guest that boots: Debian's kernel as an ELF file, an initramfs with busybox, drivers, our programs."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from elftools.elf.elffile import ELFFile

from tests.rig.debian import cache, packages
from tests.rig.debian.apt import SetupError, run
from tests.rig.guest import drivers, tool_archive
from tests.rig.guest.cpio import Archive
from tests.rig.guest.tools import TOOLS

if TYPE_CHECKING:
    from collections.abc import Collection

_SOURCES = Path(__file__).parent / "src"
#: Drivers that init loads: the port its commands come through. In later kernels they are built in.
_BOOT_MODULES = ("virtio_pci", "virtio_console")
#: Drivers that a test may load.
_MODULES = (
    *("vfio_pci", "vfio_iommu_type1", "uio_pci_generic", "9p", "9pnet_virtio"),
    *("virtio_rng", "virtio_blk", "ext4"),
    *("virtio_net", "vmw_vsock_virtio_transport", "virtio_input", "evdev"),
    *("i2c_virtio", "i2c_dev", "i2c_stub", "lm75", "at24", "gpio_virtio"),
)
#: Drivers that later kernels have no more: ext4 asked for crc32c by what it does.
_OLDER_MODULES = ("crc32c_generic",)
_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Image:
    """A guest's kernel and initramfs, and the kernel's release."""

    kernel: Path
    initramfs: Path
    release: str


def load() -> Image:
    """Return the image for the selected platform; build it first if it is new. Raises SetupError."""
    root = packages.guest_root()
    release = packages.release(root)
    directory = cache.directory() / f"image-{release}-{_fingerprint()}"
    image = Image(directory / "vmlinux", directory / "initramfs.cpio", release)
    if not directory.exists():
        packages.say(f"building the guest's image with Linux {image.release}")
        _build(root, image)
    return image


def with_tools(image: Image, names: Collection[str]) -> Path:
    """Return an initramfs with the tool sets `names` (tools.py); Linux unpacks one after the other.

    It is a file beside the image's own, so that guests without all that boot as quickly as ever.
    Raises SetupError.
    """
    if not names:
        return image.initramfs
    archive = tool_archive.archive(names)
    combined = image.initramfs.with_name(f"initramfs-{archive.stem}.cpio")
    if not combined.exists():
        with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="image-") as scratch:
            whole = Path(scratch, combined.name)
            whole.write_bytes(image.initramfs.read_bytes() + archive.read_bytes())
            whole.rename(combined)
    return combined


def _fingerprint() -> str:
    """Return what changes with everything of ours that an image is made from."""
    ours = (Path(__file__), *(Path(__file__).with_name(name) for name in ("cpio.py", "tools.py")))
    files = (*ours, *sorted(_SOURCES.iterdir()))
    parts = [drivers.fingerprint().encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _build(root: Path, image: Image) -> None:
    """Make `image` and the directory it is in: whole, or not at all. Removes older ones with this kernel."""
    directory = image.kernel.parent
    with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="image-") as scratch:
        built = Path(scratch, "built")
        built.mkdir()
        (built / image.kernel.name).write_bytes(kernel_elf(_compressed(root, image.release), root))
        (built / image.initramfs.name).write_bytes(_initramfs(root, image.release))
        try:
            built.rename(directory)
        except OSError:
            if not directory.exists():  # else another process was quicker
                raise
    for old in set(cache.directory().glob(f"image-{image.release}-*")) - {directory}:
        shutil.rmtree(old, ignore_errors=True)


def _compressed(root: Path, release: str) -> bytes:
    """Return the kernel as packages have it: in /boot, or beside its modules since Linux 7."""
    boot = root / f"boot/vmlinuz-{release}"
    return (boot if boot.exists() else root / "lib/modules" / release / "vmlinuz").read_bytes()


def kernel_elf(bz_image: bytes, root: Path) -> bytes:
    """Return the ELF file inside a bzImage. QEMU enters it directly (PVH): the guest need not unpack it.

    Where it lies and how long it is stands in the header (Linux, Documentation/arch/x86/boot.rst).
    `root` is where zstd is unpacked. Raises SetupError.
    """
    setup_sectors = bz_image[0x1F1]
    offset, length = struct.unpack_from("<II", bz_image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The build appends the unpacked size, which is no part of the compressed stream.
    payload = bz_image[start : start + length - 4]
    if payload.startswith(_XZ):
        elf = lzma.decompress(payload)
    elif payload.startswith(_ZSTD):
        elf = _unpack_zstd(payload, root)
    else:
        raise SetupError(f"unpacking the kernel: {payload[:6].hex()} begins neither xz nor zstd")
    if not elf.startswith(b"\x7fELF"):
        raise SetupError("unpacking the kernel: it holds no ELF file")
    return elf


def _unpack_zstd(payload: bytes, root: Path) -> bytes:
    argv = [str(packages.program(root, "zstd")), "-dc"]
    try:
        return subprocess.run(argv, input=payload, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"unpacking the kernel with zstd: {error}") from error


def _initramfs(root: Path, release: str) -> bytes:
    archive = Archive()
    for directory in ("dev", "proc", "sys", "tmp"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)  # before devtmpfs is mounted, init prints here
    archive.file("init", (_SOURCES / "init.sh").read_bytes(), executable=True)
    _add_busybox(archive, root / "bin/busybox")
    archive.file("bin/ivshmem-bind", (_SOURCES / "ivshmem-bind.sh").read_bytes(), executable=True)
    for source in sorted(_SOURCES.glob("*.c")):
        archive.file(f"bin/{source.stem}", _compile(source), executable=True)
    modules = Modules(root / "lib/modules" / release, drivers.built(release))
    loaded = [name for name in _BOOT_MODULES if name in modules]
    archive.file("etc/modules", "".join(f"{name}\n" for name in loaded).encode())
    older = [name for name in _OLDER_MODULES if name in modules]
    modules.add_to(archive, f"lib/modules/{release}", [*loaded, *_MODULES, *older])
    return archive.finish()


def _add_busybox(archive: Archive, busybox: Path) -> None:
    content, applets = busybox.read_bytes(), []
    tools = {program for tool_set in TOOLS.values() for program in tool_set.programs}
    for applet in run([str(busybox), "--list"], purpose="listing busybox's programs").split():
        if applet in tools:
            # busybox prefers its own to any other program of that name: another letter hides it, the
            # next one as its table is sorted.
            hidden = applet[:-1] + chr(ord(applet[-1]) + 1)
            content = content.replace(f"\0{applet}\0".encode(), f"\0{hidden}\0".encode())
        elif applet != "busybox":
            applets.append(applet)
    archive.file("bin/busybox", content, executable=True)
    for applet in applets:
        archive.link(f"bin/{applet}", "busybox")
    # The kernel runs /sbin/modprobe when a driver wants another one.
    archive.link("sbin", "bin")


def _compile(source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, source.stem)
        argv = ["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)]
        run(argv, purpose=f"compiling {source.name} (gcc and libc6-dev are needed)")
        return program.read_bytes()


class Modules:
    """A kernel's loadable modules. Names count `-` and `_` as the same, as modprobe does."""

    def __init__(self, *directories: Path) -> None:
        patterns = ("*.ko", "*.ko.xz")
        found = (path for top in directories for pattern in patterns for path in top.rglob(pattern))
        self._paths = {_module_name(path.name.partition(".ko")[0]): path for path in found}

    def __contains__(self, name: str) -> bool:
        return _module_name(name) in self._paths

    def add_to(self, archive: Archive, directory: str, names: list[str]) -> None:
        """Add the modules `names` and all that they depend on, with the modules.dep that modprobe reads.

        Debian's package has none: depmod writes it on the installing machine. Raises SetupError.
        """
        depends: dict[str, list[str]] = {}
        wanted = [_module_name(name) for name in names]
        while wanted:
            name = wanted.pop()
            if name not in depends:
                content = self._read(name)
                depends[name] = _dependencies(content)
                wanted += depends[name]
                archive.file(f"{directory}/{name}.ko", content)
        lines = (f"{name}.ko: {' '.join(_load_order(name, depends))}\n" for name in sorted(depends))
        archive.file(f"{directory}/modules.dep", "".join(lines).encode())

    def _read(self, name: str) -> bytes:
        path = self._paths.get(name)
        if path is None:
            raise SetupError(f"building the guest's image: this kernel has no module {name}")
        content = path.read_bytes()
        return lzma.decompress(content) if path.suffix == ".xz" else content


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    """Return the names that a module's .modinfo section lists under `depends`."""
    section = ELFFile(BytesIO(module)).get_section_by_name(".modinfo")
    if section is None:
        raise SetupError("building the guest's image: a module has no .modinfo section")
    fields = dict(field.partition(b"=")[::2] for field in section.data().split(b"\0"))
    return [_module_name(name) for name in fields.get(b"depends", b"").decode().split(",") if name]


def _load_order(name: str, depends: dict[str, list[str]]) -> list[str]:
    """Return the files that `name` needs; the last has to be loaded first, as in depmod's modules.dep."""
    order: list[str] = []
    wanted = list(depends[name])
    while wanted:
        needed = wanted.pop(0)
        wanted += depends[needed]
        if needed in order:
            order.remove(needed)
        order.append(needed)
    return [f"{needed}.ko" for needed in order]

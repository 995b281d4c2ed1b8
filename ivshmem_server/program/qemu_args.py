"""What to give QEMU or libvirt so that a guest joins a server."""

from __future__ import annotations

import html
import shlex
from pathlib import Path


def qemu_args(socket_path: str, vectors: int) -> str:
    """Return the QEMU options, quoted for a shell. Never add reconnect= to the chardev: QEMU hangs."""
    path = str(Path(socket_path).absolute()).replace(",", ",,")  # QEMU's own quoting of a comma
    chardev = shlex.quote(f"socket,path={path},id=ivshmem0")
    return f"-chardev {chardev} -device ivshmem-doorbell,chardev=ivshmem0,vectors={vectors}"


def libvirt_xml(socket_path: str, vectors: int) -> str:
    """Return the <shmem> element for a libvirt domain. libvirt does not start the server."""
    path = html.escape(str(Path(socket_path).absolute()))
    return (
        "<shmem name='ivshmem0'>\n"
        "  <model type='ivshmem-doorbell'/>\n"
        f"  <server path='{path}'/>\n"
        f"  <msi vectors='{vectors}' ioeventfd='on'/>\n"
        "</shmem>"
    )

"""What to give QEMU or libvirt so that a guest joins a server."""

from __future__ import annotations

import html
from pathlib import Path

from protocol.program.qemu import socket_chardev


def qemu_args(socket_path: str, vectors: int) -> str:
    """Return the QEMU options, quoted for a shell. Never add reconnect= to the chardev: QEMU hangs."""
    chardev = socket_chardev(",id=ivshmem0", path=socket_path)
    return f"{chardev} -device ivshmem-doorbell,chardev=ivshmem0,vectors={vectors}"


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

"""The programs of others that these tests run: Debian's, unpacked when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.rig.debian import packages, platforms

if TYPE_CHECKING:
    from pathlib import Path


def dpdk() -> Path:
    """Return the directory with testpmd, and DPDK's libraries and drivers. Raises SetupError."""
    return packages.unpacked(platforms.selected(), ["dpdk-dev"])


def virtiofsd() -> Path:
    """Return the directory with virtiofsd, which Debian 12 has not. Raises SetupError."""
    return packages.unpacked(platforms.PLATFORMS["debian13"], ["virtiofsd"])


def socat() -> Path:
    """Return the directory with socat. Raises SetupError."""
    return packages.unpacked(platforms.selected(), ["socat"])


def tshark() -> Path:
    """Return the directory with tshark, Wireshark for terminals. Raises SetupError."""
    return packages.unpacked(platforms.selected(), ["tshark"])

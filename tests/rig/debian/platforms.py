"""The Debian releases whose QEMU and Linux the tests use. Standard library only.

A line of PLATFORMS is all that a platform needs. What is downloaded comes from the mirror that this
machine's own packages come from, whatever release of Debian it is, and is verified with Debian's keys.

`python3 -m tests.rig.debian.platforms` prints the names of those that `make test-all` runs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.debian import cache
from tests.rig.debian.apt import Apt, SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

PLATFORM_VARIABLE = "QEMU_COMPANION_PLATFORM"
"""Selects a platform by its name; unset or empty for the first."""

_KEYRINGS = Path("/usr/share/keyrings")
_KEYRING = "debian-archive-keyring.gpg"
#: Package lists are fetched again when they are older, or when something failed with them.
_FRESH_SECONDS = 3600


@dataclass(frozen=True)
class Platform:
    """A release of Debian by the name of its suite, and the versions of what it has to test with.

    With `always`, CI and `make test-all` test it.
    """

    name: str
    suite: str
    qemu: tuple[int, int]
    linux: tuple[int, int]
    always: bool = False

    @property
    def release(self) -> str:
        """The release's code name: that of the suite, or that which the suite is an addition to."""
        return self.suite.removesuffix("-backports")


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform("debian13", "trixie", qemu=(10, 0), linux=(6, 12), always=True),
        Platform("debian12", "bookworm", qemu=(7, 2), linux=(6, 1), always=True),
        Platform("debian13-backports", "trixie-backports", qemu=(11, 1), linux=(7, 3)),
        Platform("debian12-backports", "bookworm-backports", qemu=(10, 0), linux=(6, 12)),
    )
}
"""The platforms by their names; the first is the one that tests use if nothing else is said."""


def selected() -> Platform:
    """Return what PLATFORM_VARIABLE selects. Raises SetupError for what is none."""
    wanted = os.environ.get(PLATFORM_VARIABLE) or next(iter(PLATFORMS))
    if wanted not in PLATFORMS:
        raise SetupError(f"{PLATFORM_VARIABLE}={wanted}: known are {', '.join(PLATFORMS)}")
    return PLATFORMS[wanted]


@contextmanager
def archive(platform: Platform) -> Iterator[Apt]:
    """A view of the packages of `platform` for one process at a time; raises SetupError.

    The package lists stay in the cache, and are fetched where there are none, or old ones.
    """
    with cache.locked(f"lists-{platform.name}"):
        sources = _sources(platform)
        digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:12]
        directory = cache.directory() / f"lists-{platform.name}-{digest}"
        backports = platform.suite if platform.suite != platform.release else None
        apt = Apt(directory, sources=sources, release=backports)
        fetched = directory / "fetched"
        try:
            if not (fetched.exists() and time.time() - fetched.stat().st_mtime < _FRESH_SECONDS):
                apt.update()
                fetched.touch()
            yield apt
        except SetupError:
            fetched.unlink(missing_ok=True)
            raise


def _sources(platform: Platform) -> list[str]:
    """Return the lines of a sources list for `platform`. Raises SetupError."""
    with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="sources-") as scratch:
        machine = Apt(Path(scratch))
        debian = [release for release in machine.releases() if release.origin == "Debian"]
        main = [release.uri for release in debian if release.label == "Debian"]
        security = [release.uri for release in debian if release.label == "Debian-Security"]
        if not main:
            raise SetupError("apt's sources name no archive of Debian's, which the guest's packages are from")
        keyring = _keyring(platform, machine, Path(scratch))
    suites = [(main[0], suite) for suite in (platform.release, f"{platform.release}-updates")]
    suites += [(uri, f"{platform.release}-security") for uri in security[:1]]
    if platform.suite != platform.release:
        suites.append((main[0], platform.suite))
    return [f"deb [signed-by={keyring}] {uri} {suite} main" for uri, suite in suites]


def _keyring(platform: Platform, machine: Apt, scratch: Path) -> Path:
    """Return the file of Debian's keys, with those of `platform`.

    A machine that is older than the platform may not have them: then its own release's package of
    keys is unpacked, the newest that there is.
    """
    if any(_KEYRINGS.glob(f"debian-archive-{platform.release}-automatic.*")):
        return _KEYRINGS / _KEYRING
    kept = cache.directory() / _KEYRING
    machine.update()
    machine.unpack(["debian-archive-keyring"], scratch)
    whole = scratch / _KEYRING
    whole.write_bytes((scratch / _KEYRINGS.relative_to("/") / _KEYRING).read_bytes())
    return whole.rename(kept)


if __name__ == "__main__":
    print(*(platform.name for platform in PLATFORMS.values() if platform.always))

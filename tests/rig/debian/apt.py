"""apt-get without root, with lists, caches and sources of its own. Standard library only."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PATIENCE = ("-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60")
_NOTHING_INSTALLED = ("-o", "Dir::State::status=/dev/null")
#: Directories that are below /usr since Debian 12, also those of packages that have them elsewhere.
_MERGED = ("bin", "sbin", "lib", "lib64")
#: Nothing is to be had with another user's rights.
_TAR = (
    *("tar", "-x", "--keep-directory-symlink", "--no-same-owner", "--no-same-permissions"),
    *(f"--exclude=./usr/share/{name}" for name in ("doc", "man", "locale", "info", "lintian")),
    "-C",
)


class SetupError(Exception):
    """The set-up cannot go on; the text is one line that names cause and remedy."""


@dataclass(frozen=True)
class Release:
    """A release that the machine's sources name, and where it is had from."""

    uri: str
    origin: str
    label: str


def run(argv: Sequence[str], *, purpose: str, cwd: Path | None = None) -> str:
    """Run `argv` quietly; return its standard output. Raises SetupError: `purpose`, and why it failed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise SetupError(f"{purpose}: cannot run {argv[0]}: {error.strerror}") from error
    if done.returncode:
        raise SetupError(f"{purpose}: {_complaint(done.stderr or done.stdout) or f'{argv[0]} failed'}")
    return done.stdout


def _complaint(output: str) -> str:
    """Return apt's errors out of `output` as one line; the last line where apt marked none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line[2:].strip() for line in lines if line.startswith("E:")]
    return "; ".join(errors or lines[-1:])


class Apt:
    """A view of the package archive, kept below `directory`.

    Packages come from `sources`, the lines of a sources list, or from where the machine takes its
    own. With `release`, that release's packages come first. Nothing outside `directory` changes,
    and signatures are verified as ever.
    """

    def __init__(self, directory: Path, *, sources: Iterable[str] = (), release: str | None = None) -> None:
        self._directory = directory
        self._release = release
        self._options = [*_PATIENCE, *self._private_state(), *self._private_sources(list(sources))]
        if release is not None:
            self._options += ["-o", f"APT::Default-Release={release}"]

    def _private_state(self) -> list[str]:
        lists, cache = self._directory / "lists", self._directory / "cache"
        for directory in (lists, cache):
            (directory / "partial").mkdir(parents=True, exist_ok=True)
        # apt's own unprivileged user may have no access to a directory of this user's.
        return [
            *("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"),
            *("-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"),
        ]

    def _private_sources(self, lines: list[str]) -> list[str]:
        if not lines:
            return []
        path = self._directory / "sources.list"
        path.touch(mode=0o600)  # an address may hold a password
        path.write_text("".join(f"{line}\n" for line in lines))
        # The machine's preferences were written for its own sources.
        return [
            *("-o", f"Dir::Etc::sourcelist={path}", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null"),
        ]

    def update(self) -> None:
        """Fetch the package lists. Raises SetupError."""
        run(["apt-get", *self._options, "-qq", "update"], purpose="fetching Debian's package lists")

    def releases(self) -> list[Release]:
        """Fetch and return what the releases of this view's sources say of themselves. Raises SetupError."""
        without_lists = ["-o", "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false"]
        argv = ["apt-get", *self._options, *without_lists, "update"]
        purpose = "asking Debian's mirror for its releases"
        run(argv, purpose=purpose)
        found = []
        addresses = run([*argv, "--print-uris"], purpose=purpose)
        for uri, name in re.findall(r"^'(\S+)/dists/\S+/InRelease' (\S+)", addresses, re.MULTILINE):
            path = self._directory / "lists" / name
            if path.exists():
                fields = dict(re.findall(r"^(Origin|Label): (.*)$", path.read_text(), re.MULTILINE))
                found.append(Release(uri, fields.get("Origin", ""), fields.get("Label", "")))
        return found

    def dependencies(self, package: str, *patterns: str) -> list[str]:
        """Return the packages like `patterns` that `package` depends on, one for each. Raises SetupError."""
        depends = self._depends(package)
        found = []
        for pattern in patterns:
            match = re.search(pattern, depends)
            if match is None:
                raise SetupError(f"looking for {package}: it depends on nothing like {pattern}")
            found.append(match[0])
        return found

    def parts(self, package: str, pattern: str) -> list[str]:
        """Return `package` and those like `pattern` that it depends on, if any. Raises SetupError."""
        return [package, *re.findall(pattern, self._depends(package))]

    def _depends(self, package: str) -> str:
        """Return what `package` depends on, as one line."""
        argv = ["apt-cache", *self._options, *_NOTHING_INSTALLED, "show", "--no-all-versions", package]
        depends = re.search(r"^Depends: (.*)$", run(argv, purpose=f"looking for {package}"), re.MULTILINE)
        return depends[1] if depends else ""

    def closure(self, packages: Sequence[str]) -> list[str]:
        """Return `packages` and all that they need, as name=version. Raises SetupError.

        A name that ends in - is a package to do without.
        """
        install = ["-s", "install", "--no-install-recommends"]
        argv = ["apt-get", *self._options, *_NOTHING_INSTALLED, *install, *packages]
        output = run(argv, purpose=f"resolving {packages[0]}")
        return [
            f"{name}={version}"
            for name, version in re.findall(r"^Inst (\S+) .*?\((\S+)", output, re.MULTILINE)
        ]

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Download `packages` and unpack them below `root`; install nothing. Raises SetupError.

        Programs and libraries are below `root`/usr, wherever the package has them: /bin, /lib and the
        like are links to there, as they are on a machine. Documents are left out.
        """
        for name in _MERGED:
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        with tempfile.TemporaryDirectory(dir=self._directory, prefix="archives-") as archives:
            argv = ["apt-get", *self._options, *_NOTHING_INSTALLED, "-qq", "download", *packages]
            run(argv, purpose=f"downloading {', '.join(packages)}", cwd=Path(archives))
            for archive in sorted(Path(archives).glob("*.deb")):
                unpack = f'dpkg-deb --fsys-tarfile "$0" | {shlex.join([*_TAR, str(root)])}'
                run(["sh", "-c", unpack, str(archive)], purpose=f"unpacking {archive.name}")

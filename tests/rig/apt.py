"""apt-get without root and without a trace: lists, caches and sources of its own. Standard library only."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Debian's own keys: what a sources file written here is verified with, wherever it exists.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_PATIENCE = ("-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60")
_NOTHING_INSTALLED = ("-o", "Dir::State::status=/dev/null")


class SetupError(Exception):
    """The set-up cannot go on; the text is one line that names cause and remedy."""


@dataclass(frozen=True)
class Target:
    """A package index that the machine's sources name."""

    uri: str
    release: str
    component: str
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

    def targets(self) -> list[Target]:
        """Return the package indexes of this view's sources, after an `update()`."""
        fields = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "LABEL")
        form = "|".join(f"$({field})" for field in ("CREATED_BY", *fields))
        output = run(
            ["apt-get", *self._options, "indextargets", "--format", form], purpose="reading apt's sources"
        )
        rows = (line.split("|") for line in output.splitlines())
        return [Target(*row[1:]) for row in rows if row[0] == "Packages"]

    def dependencies(self, package: str, *patterns: str) -> list[str]:
        """Return the packages like `patterns` that `package` depends on, one for each. Raises SetupError."""
        argv = ["apt-cache", *self._options, *_NOTHING_INSTALLED, "show", "--no-all-versions", package]
        purpose = f"looking for {package}"
        depends = re.search(r"^Depends: (.*)$", run(argv, purpose=purpose), re.MULTILINE)
        found = []
        for pattern in patterns:
            match = re.search(pattern, depends[1]) if depends else None
            if match is None:
                raise SetupError(f"{purpose}: it depends on nothing like {pattern}")
            found.append(match[0])
        return found

    def closure(self, packages: Sequence[str]) -> list[str]:
        """Return `packages` and what they need that is not installed, as name=version. Raises SetupError."""
        argv = [
            "apt-get",
            *self._options,
            "-s",
            "install",
            "--no-install-recommends",
            "--reinstall",
            *packages,
        ]
        output = run(argv, purpose=f"resolving {packages[0]}")
        return [
            f"{name}={version}"
            for name, version in re.findall(r"^Inst (\S+) .*?\((\S+)", output, re.MULTILINE)
        ]

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Download `packages` and unpack them below `root`; install nothing. Raises SetupError."""
        archives = self._directory / "archives"
        archives.mkdir(exist_ok=True)
        argv = ["apt-get", *self._options, *_NOTHING_INSTALLED, "-qq", "download", *packages]
        run(argv, purpose=f"downloading {', '.join(packages)}", cwd=archives)
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "-x", str(archive), str(root)], purpose=f"unpacking {archive.name}")
            archive.unlink()

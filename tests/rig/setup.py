"""Installs and downloads what is missing: `python3 -m tests.rig.setup [--tests]`.

Standard library only.
"""

from __future__ import annotations

import sys

from tests.rig.debian import packages, platforms
from tests.rig.debian.apt import SetupError
from tests.rig.guest import drivers, tools


def main() -> int:
    """Install and download what is missing; return the exit code."""
    more = packages.TEST_TOOLS if "--tests" in sys.argv[1:] else {}
    try:
        platforms.selected()
        packages.require_debian()
        packages.install_missing({**packages.INSTALLED, **more})
        root, unpacked = packages.guest_root(), tools.root()
        drivers.built(packages.release(root))
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    packages.say(f"the guest's kernel and busybox are in {root}, its tools in {unpacked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

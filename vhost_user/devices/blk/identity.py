"""What tells a disk from others, in the words of a serial number."""

from __future__ import annotations

import hashlib
import os
import stat

_PREFIX = "qc-"
_DIGEST_SIZE = 8


def default_serial(fd: int, path: str = "") -> str:
    """Return a serial number for a disk: 19 characters, the same whenever it is opened. Raises OSError.

    That of a file goes by the file itself, and stays when it is renamed; a copy has another one. That of a
    block device, whose numbers may change when its host starts again, goes by the path that names it.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        identity = f"device {os.path.abspath(path) if path else status.st_rdev}"  # noqa: PTH100 -- a pure text
    else:
        identity = f"file {os.fstatvfs(fd).f_fsid or status.st_dev} {status.st_ino}"
    digest = hashlib.blake2b(os.fsencode(identity), digest_size=_DIGEST_SIZE)
    return _PREFIX + digest.hexdigest()

"""What the command lines say of a socket that cannot be had: the cause, and what to do about it."""

from __future__ import annotations

import errno

from protocol.io import RemediedError, exhaustion

_REMEDIES = {
    errno.EACCES: "choose a directory that you may write to",
    errno.EADDRINUSE: "stop it or choose another path",
    errno.EEXIST: "remove it or choose another path",
    errno.EPERM: "its filesystem may know no sockets: choose a path on another",
    errno.EINVAL: "choose one",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ENOENT: "create the directory first",
    errno.EROFS: "choose a directory that you may write to",
}


def cause_and_remedy(error: OSError) -> str:
    """Return both, for the path of a socket to listen on or to connect to."""
    if isinstance(error, RemediedError):
        return f"{error.strerror}; {error.remedy}"
    if exhaustion.is_exhausted(error):
        return exhaustion.cause_and_remedy(error)
    return f"{error.strerror}; {_REMEDIES.get(error.errno or 0, 'choose another path')}"

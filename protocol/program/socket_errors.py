"""What the command lines say of a socket that cannot be had: the cause, and what to do about it."""

from __future__ import annotations

import errno

from protocol.io import RemediedError, SocketInUseError, exhaustion
from protocol.program.command_line import EMPTY, UserError

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


def cannot_listen(path: str, error: OSError) -> UserError:
    """Return what to tell the user of a socket that cannot be made at `path`."""
    if isinstance(error, SocketInUseError):
        return UserError(f"socket {path} is in use by another program; stop it or choose another path")
    return UserError(f"cannot listen on {path or EMPTY}: {cause_and_remedy(error)}")

"""Why a socket cannot be had, in one line for the user: the cause, and the remedy."""

from __future__ import annotations

import errno

from protocol.io import RemediedError, SocketInUseError, exhaustion
from protocol.program.command_line import EMPTY, UserError

_REMEDIES = {
    errno.EACCES: "choose a directory that you may write to",
    errno.EADDRINUSE: "stop it or choose another path",
    errno.EEXIST: "remove it or choose another path",
    errno.EPERM: "its filesystem may not support sockets: choose a path on another",
    errno.EINVAL: "choose one",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ENOENT: "create the directory first",
    errno.EROFS: "choose a directory that you may write to",
}


def cause_and_remedy(error: OSError, option: str = "") -> str:
    """Return both, for a socket to listen on or to connect to; `option` is what takes its path."""
    if isinstance(error, RemediedError):
        return f"{error.strerror}; {error.remedy}"
    if exhaustion.is_exhausted(error):
        return exhaustion.cause_and_remedy(error)
    remedy = _REMEDIES.get(error.errno or 0, "choose another path")
    if option:
        other = ", or choose another path" if error.errno == errno.ENOENT else ""
        remedy += f"{other} with {option}"
    return f"{error.strerror or error}; {remedy}"


def cannot_listen(path: str, error: OSError, option: str = "") -> UserError:
    """Return the error for a socket that cannot be made at `path`, which `option` gave."""
    if isinstance(error, SocketInUseError):
        how = f" with {option}" if option else ""
        return UserError(f"socket {path} is in use by another program; stop it or choose another path{how}")
    return UserError(f"cannot listen on {path or EMPTY}: {cause_and_remedy(error, option)}")


def cannot_connect(path: str, error: OSError, option: str = "") -> UserError:
    """Return the error for a socket at `path`, which `option` gave, that cannot be connected to."""
    return UserError(f"cannot connect to {path or EMPTY}: {cause_and_remedy(error, option)}")

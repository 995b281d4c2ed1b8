"""Logging for programs: one line a record, for people or as JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from protocol.io.means import cause_and_remedy

FORMATS = ("text", "json")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, message, and what the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _TextFormatter(logging.Formatter):
    """A record as "program: message", with the level where it is worse than information."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of text, with its traceback below if it has one."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        text = f"{self._program}: {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Forgiving(logging.Handler):
    """Says once that the log cannot be written, as on a full disk: the program goes on."""

    complaint = "cannot write the log"
    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's own name
        """Take notice that `record` could not be written."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            with contextlib.suppress(OSError):  # standard error may be what cannot be written
                print(f"{self.complaint}: {cause_and_remedy(error)}", file=sys.stderr, flush=True)


class _Terminal(_Forgiving, logging.StreamHandler[TextIO]):
    """The log on standard error."""


class _File(_Forgiving, logging.FileHandler):
    """The log in a file."""


def configure(program: str, *, style: str = "text", verbose: bool = False, path: str | None = None) -> None:
    """Send the process's log records to standard error, or append them to the file `path`.

    `style` is one of FORMATS; `verbose` adds debug records. Raises OSError where `path` cannot be opened.
    """
    handler = _File(path) if path else _Terminal()
    handler.complaint = f"{program}: cannot write the log {path or ''}".rstrip()
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter(program))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)

"""Logging for programs: one line a record, for people or as JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

from protocol.io.exhaustion import cause_and_remedy

FORMATS = ("text", "json")

_log = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, message, and what the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        entry: dict[str, object] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if text := _traceback(record, self):
            entry["exception"] = text
        return json.dumps(entry, default=str)


class _TextFormatter(logging.Formatter):
    """A record as "TIME program: message", with the level where it is worse than information.

    The time is written as QEMU writes it with `-msg timestamp=on`, so that two logs can be merged by it.
    """

    def __init__(self, program: str, *, timed: bool) -> None:
        super().__init__()
        self._program = program
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of text, with its traceback below if it has one."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        time = f"{_time(record).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z " * self._timed
        text = f"{time}{self._program}: {level}{record.getMessage()}"
        trace = _traceback(record, self)
        return f"{text}\n{trace}" if trace else text


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """Return the traceback of a record, which may have it as text already; "" where there is none."""
    return record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")


class _Forgiving(logging.Handler):
    """Says once that the log cannot be written, as on a full disk: the program goes on."""

    complaint = "cannot write the log"
    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's own name
        """Say once that `record` could not be written."""
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
    """The log in a file, which may be moved away and opened again."""

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def reopen(self) -> None:
        """Go on in the file that has our path now; in the old one where that cannot be opened."""
        try:
            new = self._open()
        except OSError as error:
            why = f"{cause_and_remedy(error)}; going on in the file that it was"
            _log.error("cannot open the log %s: %s", self.baseFilename, why)
            return
        with contextlib.suppress(OSError):  # the old one is on a full disk: it was told then
            old = self.setStream(new)
            if old is not None:
                old.close()
        self._told = False


def configure(program: str, *, style: str = "text", verbose: bool = False, path: str | None = None) -> None:
    """Send the process's log records to standard error, or append them to the file `path`.

    `style` is one of FORMATS; `verbose` adds debug records. Each line tells the time, but on standard error
    where that is the journal, which has its own. Raises OSError where `path` cannot be opened.
    """
    handler = _File(path) if path else _Terminal()
    handler.complaint = f"{program}: cannot write the log {path or ''}".rstrip()
    timed = bool(path) or not _is_journal(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter(program, timed=timed))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def reopen() -> None:
    """Open the log's file again, as after logrotate(8) has moved it; nothing where the log is in none."""
    for handler in _files():
        handler.reopen()


def is_file() -> bool:
    """Tell whether the log is in a file, so that standard error shows nothing of it."""
    return bool(_files())


def _files() -> list[_File]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _File)]


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _is_journal(stream: TextIO) -> bool:
    """Tell whether the stream is the one that systemd connected to its journal: systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

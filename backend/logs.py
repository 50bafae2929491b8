"""How processes log: one line per event on stderr, as text or as JSON, and no secret in any of them.

Three things keep tokens, payloads and signatures out, whoever logs:

- what we log names what is logged, field by field (`Line`), and never a payload;
- libraries may warn but not tell: many log whole addresses or every request, and `LOG_LEVEL` is for our own packages;
- `SafeFormatter`, the net below: queries of addresses, credentials and the secrets of the settings are cut out of every
  line, and of errors that are not ours the text is left out, since it may quote what somebody sent.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

OWN = ("backend", "vlm_core", "training_jobs")
"""Our packages: their loggers follow `LOG_LEVEL`."""

_TELLING = ("uvicorn", "rq")
"""Libraries whose INFO an operator wants: the server's start and end, and a worker's jobs. Nothing below INFO."""

LogFormat = Literal["text", "json"]


class Line:
    """What happened, as fields: `key=value` in text, a member each in JSON.

    Log it as the message: `log.info(Line("request", status=200))`.
    """

    def __init__(self, event: str, /, **fields: object) -> None:
        """Keep them.

        Args:
            event: what JSON calls the line.
            fields: texts, numbers, booleans; None is left out.
        """
        self.event = event
        self.fields = {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        return " ".join(f"{name}={_plain(value)}" for name, value in self.fields.items())


class SafeFormatter(logging.Formatter):
    """Text lines, without what must not be in a log."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        """Keep what to cut out.

        Args:
            secrets: texts that no line may hold.
        """
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        longest_first = sorted(filter(None, secrets), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def format(self, record: logging.LogRecord) -> str:
        """The whole line, an error's traceback below it."""
        return self.clean(super().format(record))

    def clean(self, text: str) -> str:
        """`text` without secrets, credentials and queries of addresses."""
        if self._secrets is not None:
            text = self._secrets.sub(_CUT, text)
        for pattern, instead in _UNSAFE:
            text = pattern.sub(instead, text)
        return text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line; what our packages log is one, whatever texts of others it holds."""
        line = super().formatMessage(record)
        return line.replace("\r", "\\r").replace("\n", "\\n") if record.name.partition(".")[0] in OWN else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        """Where each error of the chain was raised; its text only where it is one of ours or the system's."""
        error = ei[1]
        return "" if error is None else "\n".join(_told(error)).rstrip()


class JsonFormatter(SafeFormatter):
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, the fields, `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole line."""
        line = record.msg if isinstance(record.msg, Line) else None
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage() if line is None else line.event,
        }
        if line is not None:
            # What a field is called is up to us; that it is none of these four is too.
            entry |= {n: v if isinstance(v, (bool, int, float)) else str(v) for n, v in line.fields.items()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: self.clean(v) if isinstance(v, str) else v for name, v in entry.items()})


def configure_logging(level: str, style: LogFormat = "text", *, secrets: Collection[str] = ()) -> None:
    """Set up logging for a process; called by commands only.

    Args:
        level: as in `LOG_LEVEL`, for our packages; libraries are never more talkative than this, and most only warn.
        style: of the lines.
        secrets: texts that no line may hold.
    """
    own = logging.getLevelNamesMapping()[level]
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(secrets) if style == "json" else SafeFormatter(secrets))
    logging.basicConfig(handlers=[handler])
    logging.getLogger().setLevel(max(own, logging.WARNING))
    for name in OWN:
        logging.getLogger(name).setLevel(own)
    for name in _TELLING:
        logging.getLogger(name).setLevel(max(own, logging.INFO))


def _plain(value: object) -> str:
    """A value that needs no quotes, or a JSON string: none can fake a field or a line of its own."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


_PLAIN = re.compile(r"[\w/.:+%,-]+", re.ASCII)
_CUT = "[removed]"
_UNSAFE = (
    # Basic, Bearer and legacy credentials; prose about them has no digits in its next word.
    (re.compile(r"\b(Basic|Bearer|Token) +(?=[^\s'\"]*\d)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {_CUT}"),
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{_CUT}@"),
    # A query or a fragment; that of Label Studio's local files is a path.
    (re.compile(r"(?<=/data/local-files/)\?(d=[^&\s'\"<>]*)[^\s'\"<>]*"), r"?\1"),
    (re.compile(r"(?<!/data/local-files/)(?<=[\w/%.-])[?#][^\s'\"<>]*=[^\s'\"<>]*"), "?..."),
    (re.compile(r"\b(data:[\w.+-]*/?[\w.+;=-]{0,60},)[^\s'\"<>]{40,}"), r"\1..."),
)


def _told(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """The lines of a traceback, the first error of a chain first."""
    seen |= {id(error)}
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "\nand then:\n"
    yield from (line.rstrip("\n") for line in traceback.format_tb(error.__traceback__))
    kind = type(error)
    yield f"{kind.__module__}.{kind.__qualname__}: {error_text(error)}"


def error_text(error: BaseException) -> str:
    """What an error says where it is one of ours or the system's; of others only that it is left out."""
    own = type(error).__module__.partition(".")[0] in OWN
    # RuntimeError: what torch and CUDA say.
    system = isinstance(error, (OSError, RuntimeError, MemoryError, AssertionError)) and not isinstance(
        error, UnicodeError
    )
    return str(error) if own or system else "(its text is left out: it may quote what was sent)"

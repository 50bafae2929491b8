"""Large JSON files, one record at a time.

Data sets come as one JSON document of some hundred megabytes, which takes gigabytes as Python objects. Here a
document is a list of records, or an object of such lists; each record is handed out with its place in the file, so
that a second pass can read records in another order without ever holding all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from vlm_core.errors import DataError

_CHUNK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """One element of a list in the document.

    Attributes:
        key: name of the list; "" where the document itself is the list.
        start, end: half-open range of bytes that holds it.
        value: the element.
    """

    key: str
    start: int
    end: int
    value: Any


def read_records(path: Path) -> Iterator[Record]:
    """Every element of the document's lists, in the file's order. Members of the document that are no list are skipped.

    Args:
        path: UTF-8, a JSON list or an object.

    Raises:
        DataError: no such file, not JSON from some byte on (records before it have been handed out), or neither list
            nor object.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(file, path).records()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_record(file: BinaryIO, start: int, end: int) -> Any:
    """The value of a record that `read_records` has found in the same, unchanged file."""
    file.seek(start)
    return json.loads(file.read(end - start))


class _Reader:
    """A window that moves over the file. It is kept as latin-1, so that an index in it is a number of bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._decoder = json.JSONDecoder()
        start = file.read(len(_BYTE_ORDER_MARK))
        self._text = "" if start == _BYTE_ORDER_MARK else start.decode("latin-1")
        self._offset = len(_BYTE_ORDER_MARK) if start == _BYTE_ORDER_MARK else 0
        self._position = 0
        self._ended = False

    def records(self) -> Iterator[Record]:
        opening = self._peek()
        if opening == "[":
            yield from self._list("")
        elif opening == "{":
            yield from self._object()
        else:
            raise DataError(f"{self._path} holds no JSON list or object")
        if self._peek():
            self._fail("something follows the document's end")

    def _object(self) -> Iterator[Record]:
        self._position += 1
        if self._peek() == "}":
            self._position += 1
            return
        while True:
            if self._peek() != '"':
                self._fail("a name is expected")
            _, _, key = self._value()
            self._take(":")
            if self._peek() == "[":
                yield from self._list(str(key))
            else:
                self._value()
            if self._take(",}") == "}":
                return

    def _list(self, key: str) -> Iterator[Record]:
        self._position += 1
        if self._peek() == "]":
            self._position += 1
            return
        while True:
            self._peek()
            yield Record(key, *self._value())
            if self._take(",]") == "]":
                return

    def _value(self) -> tuple[int, int, Any]:
        """Start, end and value of what stands at the position, which moves behind it."""
        size = _CHUNK_BYTES
        while True:
            problem = ""
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                problem = error.msg
            except (ValueError, RecursionError) as error:
                problem = str(error)
            # A number may go on behind the window: it ends where its delimiter is seen.
            if not problem and (self._ended or self._text[end : end + 64].lstrip(" \t\r\n")[:1] in (*",:]}",)):
                break
            if self._ended:
                self._fail(problem)
            self._read(size)
            size *= 2
        source = self._text[self._position : end]
        if not source.isascii():
            try:
                value = json.loads(source.encode("latin-1"))
            except ValueError as error:
                self._fail(f"not UTF-8: {error}")
        start = self._offset + self._position
        self._position = end
        return start, self._offset + end, value

    def _peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in " \t\r\n":
                    return self._text[self._position]
                self._position += 1
            if self._ended:
                return ""
            self._read(_CHUNK_BYTES)

    def _take(self, expected: str) -> str:
        found = self._peek()
        if not found or found not in expected:
            self._fail(f"one of {' '.join(expected)} is expected")
        self._position += 1
        return found

    def _read(self, size: int) -> None:
        chunk = self._file.read(size)
        self._ended = not chunk
        self._text = self._text[self._position :] + chunk.decode("latin-1")
        self._offset += self._position
        self._position = 0

    def _fail(self, problem: str) -> NoReturn:
        at = self._offset + self._position
        raise DataError(f"{self._path} is not JSON at byte {at} ({problem}): download or export it again")

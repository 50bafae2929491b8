"""Image-text pairs by the name of what holds them: a JSONL or CSV file, tar shards, or a directory of shards."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Iterator
from pathlib import Path

from vlm_core.data import FilePairs, JsonlPairs, PairRow, named_file, named_text
from vlm_core.errors import DataError
from vlm_core.shards import ShardPairs

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000


def open_pairs(where: str | Path) -> FilePairs | ShardPairs:
    """Image-text pairs from whatever `where` names.

    Args:
        where: a `.jsonl` file (or one of any other name), a `.csv` or `.tsv` file with a header, a `.tar` shard,
            several by a pattern (`data/*.tar`) or braces (`data/{000..127}.tar`), or a directory that holds them.

    Raises:
        DataError: nothing is there, or nothing in it can be used.
    """
    path = Path(where)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise DataError(f"no .tar file in the directory {path}: give shards, or the name of a JSONL or CSV file")
        return ShardPairs(shards)
    if path.suffix.lower() in (".csv", ".tsv"):
        return FilePairs(read_csv_pairs(path))
    if path.suffix.lower() == ".tar" or (not path.exists() and any(sign in str(where) for sign in "*?[{")):
        return ShardPairs(shard_paths(str(where)))
    return JsonlPairs(path)


def shard_paths(pattern: str) -> list[Path]:
    """Files that a name with braces and wildcards stands for; braces first, in their order, as in a shell.

    Raises:
        DataError: one that is named is not there, or a pattern has none.
    """
    found: list[Path] = []
    for name in _expand(pattern):
        if Path(name).is_file():
            found.append(Path(name))
        elif not (matching := sorted(glob.glob(name, recursive=True))):
            raise DataError(f"no shard {name}" + (f", of {pattern}" if name != pattern else "") + ": check the path")
        else:
            found += [Path(match) for match in matching]
    return list(dict.fromkeys(found))


def _expand(pattern: str) -> Iterator[str]:
    """`{a,b}` and `{000..127}` in a name; zeros in front are kept."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    inner = braces.group(1)
    if bounds := _RANGE.fullmatch(inner):
        first, last = int(bounds[1]), int(bounds[2])
        if abs(last - first) >= _MOST_SHARDS:
            raise DataError(f"{{{inner}}} stands for more than {_MOST_SHARDS} shards: check the numbers")
        step = 1 if last >= first else -1
        padded = any(len(bound) > 1 and bound.startswith("0") for bound in bounds.groups())
        width = max(len(bounds[1]), len(bounds[2])) if padded else 0
        parts = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    else:
        parts = inner.split(",")
    for part in parts:
        yield from _expand(pattern[: braces.start()] + part + pattern[braces.end() :])


def read_csv_pairs(path: Path) -> list[PairRow]:
    """Read an image-text table: a header with `image` and `text`, other columns ignored.

    Args:
        path: separated by commas, or by tabs where it ends with `.tsv`; image paths are relative to it.

    Raises:
        DataError: naming the line, the value and what to do.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            missing = {"image", "text"} - set(table.fieldnames or ())
            if missing:
                raise DataError(f"{path} has no column {' and '.join(sorted(missing))}: its first line must name them")
            for row in table:
                where = f"{path}, line {table.line_num}"
                rows.append(PairRow(named_file(row, "image", path, where), named_text(row, "text", where)))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give a table with the columns image and text") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no line below its header")
    return rows

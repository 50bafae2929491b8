"""Pickles that hold plain values alone, which is all that some data sets are: read without the danger of pickles.

A pickle is a program: it may name any function of any module and call it. All of that goes through names, so a
reader that knows none can only put together None, booleans, numbers, texts, lists, tuples, dicts and sets.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from vlm_core.errors import DataError


def read_plain_pickle(path: Path) -> Any:
    """The plain value that a pickle holds. Texts that Python 2 wrote are read as UTF-8.

    Raises:
        DataError: no such file, no pickle, or one that names anything to import or call; nothing of it has run.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except Exception as error:  # a broken pickle surfaces as nearly anything
        raise DataError(f"{path} is no readable pickle ({error or type(error).__name__}): download it again") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise DataError(
            f"names {module_name}.{global_name}, which plain data has no need of: it may be malicious and was not "
            "read further. Take the original file"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DataError(
            f"names an outside object ({pid!r:.80}), which plain data has no need of. Take the original file"
        )

"""Fits that a training has finished, on the disk: a job that is run again goes on after the last of them.

    <project>/training/<fingerprint>/<fit>.fit      tensors as safetensors, with a checksum before them

A fit is a function of what it learns from, its settings and its seed, all of which are in the fingerprint; so a
training that was resumed ends with the bits of one that was not. A fit takes seconds to a few minutes; one that was cut
begins again.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from backend import atomic
from backend.checked_bytes import DamagedError, UnsealedError, seal, unseal

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class FitCheckpoints:
    """Of one training; those of others are removed when something is kept. Safe to share between threads."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        """Nothing is read or written yet.

        Args:
            directory: the project's; it must exist when something is kept.
            fingerprint: hex, of all that decides what is learned.
        """
        self._all = directory / "training"
        self._own = self._all / fingerprint[:32]
        self._keeping = threading.Lock()

    def get_or_fit(self, name: str, fit: Callable[[], Mapping[str, Tensor]]) -> Tensors:
        """What this fit came to before; else `fit` runs, and what it comes to is kept.

        A file that cannot be read is as good as none, and a disk that takes none costs only the resuming.

        Args:
            name: of the fit; any text, one for each fit of a training.
            fit: gives tensors of the CPU by name.
        """
        path = self._own / (re.sub(r"[^a-z0-9]+", "-", name.lower()) + ".fit")
        try:
            return load(unseal(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, DamagedError, UnsealedError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): that part is learned again", path, error)
        found = {key: value.contiguous() for key, value in fit().items()}
        try:
            self._keep(path, found)
        except OSError as error:
            log.warning("%s cannot be written (%s): if this job is cut it begins anew", path, error)
        return found

    def clear(self) -> None:
        """The training has ended: nothing is kept any more, of none of the project."""
        shutil.rmtree(self._all, ignore_errors=True)

    def _keep(self, path: Path, tensors: Tensors) -> None:
        with self._keeping:
            if not self._own.exists():
                self.clear()
                self._own.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, seal(save(tensors)))

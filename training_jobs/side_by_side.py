"""Fits of one training on several devices, side by side.

The fits that cross-validation asks for do not depend on each other, so each device takes whole ones: nothing is sent
between devices while they learn, and what is learned is what one device alone would learn. Why threads and no launcher
of processes is in docs/decisions/several-gpus.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")


class AbandonedError(Exception):
    """Raised in a fit whose result nobody waits for any more."""


@dataclass(frozen=True)
class Place:
    """Where one fit runs.

    Attributes:
        device: of its tensors.
        abandoned: set once nobody waits for it.
    """

    device: torch.device
    abandoned: threading.Event

    def check(self) -> None:
        """Called between the steps of the fit. Raises AbandonedError once nobody waits for it."""
        if self.abandoned.is_set():
            raise AbandonedError


class Places:
    """The devices of one training."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Nothing is started.

        Args:
            devices: at least one; one that is named n times takes n fits at a time. The CPU's threads are divided among
                them.
        """
        self._devices = tuple(devices)

    def __len__(self) -> int:
        return len(self._devices)

    def all(self, fits: Iterable[Callable[[Place], T]]) -> list[T]:
        """What `each` gives, where all of it is wanted."""
        with closing(self.each(fits)) as found:
            return list(found)

    def each(self, fits: Iterable[Callable[[Place], T]]) -> Generator[T, None, None]:
        """What each fit gives, in their order; close it where not all is taken, which ends those that still run.

        Args:
            fits: that do not depend on each other, and call `Place.check` often. On a single device each is run by the
                caller, when its result is asked for; else by threads, some of them ahead.

        Raises:
            Exception: what a fit raises, where its result would be.
        """
        abandoned = threading.Event()
        if len(self) == 1:
            for fit in fits:
                yield fit(Place(self._devices[0], abandoned))
            return
        threads = torch.get_num_threads()
        free: SimpleQueue[torch.device] = SimpleQueue()
        for device in self._devices:
            free.put(device)
        failed: list[BaseException] = []

        def run(fit: Callable[[Place], T]) -> T:
            device = free.get()
            try:
                place = Place(device, abandoned)
                place.check()
                torch.set_num_threads(max(1, threads // len(self)))
                return fit(place)
            except AbandonedError:
                raise
            except BaseException as error:
                failed.append(error)
                abandoned.set()
                raise
            finally:
                free.put(device)

        try:
            with ThreadPoolExecutor(len(self)) as pool:  # waits for its threads at the end, so they must be told before
                try:
                    for future in [pool.submit(run, fit) for fit in fits]:
                        yield future.result()
                except AbandonedError:
                    raise failed[0] from None  # another fit is why this one has ended
                finally:  # an error, a signal, or nobody wants the rest
                    abandoned.set()
        finally:
            torch.set_num_threads(threads)

"""Progress over all fits of a training, by how long their steps take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from training_jobs.recipes.config import RecipeConfig
from training_jobs.side_by_side import Place

Tick = Callable[[str, float, float | None], None]
"""Called often with phase, done share of the whole (0 to 1) and, while fitting, loss; may raise to give up."""

FitTick = Callable[[float, float], None]
"""Called after each step of one fit with done share (0 to 1) and loss; may raise to give up."""


class FitProgress:
    """Of fits that run one after the other, or several at a time."""

    def __init__(self, tick: Tick, config: RecipeConfig, folds: int, kinds: Collection[str]) -> None:
        """Nothing is said yet.

        Args:
            tick: called by one thread at a time; once it has raised, all fits raise the same.
            config: says how many steps a fit has.
            folds: for each of which, and for all examples, there is a fit of each kind.
            kinds: that there will be: "conditions", "head", "head with LoRA", "decoder".
        """
        self._tick = tick
        self._costs = {
            "conditions": float(config.conditions.steps),
            "head": 0.3 * config.head.steps,
            "head with LoRA": 2.0 * config.head.steps,
            "decoder": 2.0 * config.decoder.steps,
        }
        self._total = (folds + 1) * sum(self._costs[kind] for kind in kinds)
        self._done: dict[str, float] = {}
        self._said = threading.Lock()
        self._raised: BaseException | None = None

    @contextmanager
    def of(self, phase: str, kind: str, place: Place) -> Iterator[FitTick]:
        """Around one fit: what it calls after each step. Afterwards all of it counts as done.

        Args:
            phase: names the fit, and no other.
            kind: a key of the costs.
            place: where it runs.
        """
        cost = self._costs[kind]

        def tick(share: float, loss: float) -> None:
            place.check()
            self._say(phase, loss, {phase: cost * share})

        yield tick
        self.skip(phase, kind)

    def skip(self, phase: str, kind: str) -> None:
        """Nothing more is to be done of a fit."""
        with self._said:
            self._done[phase] = self._costs[kind]

    def end(self) -> None:
        """Say that all is done: what did not pay was not trained to the end."""
        self._tick("choosing", 1.0, None)

    def alive(self, phase: str = "choosing") -> None:
        """Say that it goes on, between fits."""
        self._say(phase, None, {})

    def _say(self, phase: str, loss: float | None, done: dict[str, float]) -> None:
        with self._said:
            if self._raised is not None:
                raise self._raised
            self._done |= done
            try:
                self._tick(phase, min(1.0, sum(self._done.values()) / self._total), loss)
            except BaseException as error:
                self._raised = error
                raise

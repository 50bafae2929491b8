"""How far to go with the corrections that there are: rungs of adapting, each only where it pays.

1. **Conditions.** For each label: its phrases as they are, the mean of them where there are several, or vectors learned
   from the masks (`recipes.tune_conditions`), all the way or half of it. A label that nothing helps keeps its
   phrases, and is answered as before to the bit.
2. **Decoder.** With `decoder_from` images or more its weights too (`recipes.finetune_decoder`), starting from what the
   first rung has found, and only so far (WiSE-FT, zero included) as no label loses.
3. **Cut.** Temperature, threshold and part score of each label (`recipes.calibrate`).

Everything is chosen by cross-validation **inside** the training part, by image: each image is answered by models that
have not learned from it, and the same answers choose all three. The held-out part is not seen here; the gate
(`training_jobs.promote`) looks at it once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.manifest import Cuts
from training_jobs import split
from training_jobs.ahead import ahead
from training_jobs.fit_checkpoints import FitCheckpoints
from training_jobs.recipes import finetune_decoder, tune_conditions
from training_jobs.recipes.calibrate import Calibration, Tally, calibrate, measure
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import Example, PromptTable, State, decoder_state, interpolate
from training_jobs.recipes.micro_batches import MicroBatches
from training_jobs.recipes.resident import resident
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.learned_conditions import join_state

Tick = Callable[[str, float, float | None], None]
"""Called often with phase, done share of the whole (0 to 1) and, while fitting, loss; may raise to give up."""

Option = str | float
"""Of a label's conditions: one of the two names below, or how far to go from the text's towards what was learned."""
Told = dict[int, list[list[Tally]]]
"""Per label and fold what images say that the fold's model has not learned from."""

_MOST_THREADS = 8
"""That count what images say."""
AS_CONFIGURED = "as configured"
MEAN = "mean of the phrases"
_DEAREST = 0.5
"""Of the price of marking a label in all images that do not show it, in IoU. Beyond it a cut leaves nothing at all of a
label that the model can hardly tell from others; whether the rest is worth it is for the gate to say."""


@dataclass(frozen=True)
class Learned:
    """What climbing has found.

    Attributes:
        state: for `Model.with_learned`: the decoder's weights, float32, CPU, and learned conditions.
        cuts: how to decode each label for which that was chosen.
        chosen: JSON: per label the conditions, the decoder's share, and what cross-validation said of both.
    """

    state: State
    cuts: Cuts = field(default_factory=Cuts)
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """The labels that are learned, in the order of `PromptTable.groups`.

    Attributes:
        names: as in results.
        phrases: of each, in the order of its rows.
        fixed_cut: whose threshold the labelling config sets: it stays.
    """

    names: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    fixed_cut: frozenset[str] = frozenset()


class Climb:
    """One run. First `learn`, then `by_folds` where the gate needs it."""

    def __init__(
        self,
        start: CLIPSegDecoder,
        examples: Sequence[Example],
        prompts: PromptTable,
        labels: Labels,
        config: RecipeConfig,
        tick: Tick,
        checkpoints: FitCheckpoints | None = None,
    ) -> None:
        """Nothing is learned yet.

        Args:
            start: the base model's decoder; not changed. Its device is where training runs.
            examples: at least one, each image once. **Only** training images.
            prompts: of the labels, with the conditions of the text encoder.
            labels: their names and phrases.
            config: all settings. With equal input and threads, two runs on a CPU give equal bits.
            tick: see `Tick`.
            checkpoints: where fits that are finished are found again; None: nowhere.

        Raises:
            ValueError: no example.
        """
        self._checkpoints = checkpoints
        self._parts = MicroBatches()
        if not examples:
            raise ValueError("nothing to train on: give at least one corrected image")
        ordered = sorted(examples, key=lambda example: example.image)  # the order of arrival changes nothing
        ordered = resident(ordered, next(start.parameters()).device)
        self._start, self._examples, self._prompts = start, ordered, prompts
        self._labels, self._config = labels, config
        self._all = range(len(labels.names))
        self._folds = _folds(ordered, config.folds) if len(ordered) >= config.choose_from else []
        self._with_decoder = bool(self._folds) and len(ordered) >= config.decoder_from
        self._work = _Work(tick, config, len(self._folds), with_decoder=self._with_decoder)

    def learn(self) -> Learned:
        """Adapt to all examples, as far as cross-validation says that it pays."""
        with _threads(self._config.decoder.threads), _tensor_cores():
            self._teachable = self._badly_marked()
            self._tables = [
                self._tuned(fold.fitted, f"trying phrases, {number} of {len(self._folds)}")
                for number, fold in enumerate(self._folds, 1)
            ]
            self._told = self._ask_options()
            options = self._options()
            table = self._table(self._tuned(self._examples, "learning phrases"), options)
            self._states = [decoder_state(self._start)] * len(self._folds)
            told, state, share = self._of(options), decoder_state(self._start), 0.0
            if self._with_decoder:
                tables = [self._table(one, options) for one in self._tables]
                fitted = [
                    self._fit(fold.fitted, one, f"trying the decoder, {number} of {len(self._folds)}")
                    for number, (fold, one) in enumerate(zip(self._folds, tables, strict=True), 1)
                ]
                share, told = self._share(fitted, tables, told)
                if share:
                    self._states = [interpolate(state, one, share) for one in fitted]
                    state = interpolate(state, self._fit(self._examples, table, "learning the decoder"), share)
            learned = self._result(state, table, options, self._cuts(told), share)
        self._work.end()
        return learned

    def by_folds(self) -> list[tuple[frozenset[str], Learned]]:
        """Each fold's images with what was learned without them, to be judged on them.

        Choices too are made by the other folds' images. The models that answered for those had seen this fold's, so a
        few bits about it leak into what is chosen, none into what is learned; training anew inside each fold would
        cost as many times more. How far the decoder's weights go, if they do, is what all folds have chosen.

        Empty where there are too few images to choose from. After `learn`, at no cost to speak of.
        """
        found = []
        for number, fold in enumerate(self._folds):
            options = self._options(without=number)
            table, state = self._table(self._tables[number], options), self._states[number]
            cuts = self._cuts(self._of(options), without=number)
            images = frozenset(example.image for example in fold.asked)
            found.append((images, self._result(state, table, options, cuts, 0.0)))
        return found

    # --- conditions ----------------------------------------------------------------------------------------
    def _badly_marked(self) -> list[int]:
        """Labels that enough images show and that are not marked well as they are, where they are.

        Few images are of few kinds. What is learned from them replaces nothing where a label is not known at all; of
        one that is half known it may forget the other kinds, which no split of these images can show.
        """
        found: dict[int, list[float]] = {}
        for example in self._examples:
            self._work.alive("looking at the labels")
            for label, logits, target in _answers(self._start, example, self._prompts, set(self._all)):
                predicted, true = logits >= 0, target >= 128
                if true.any():
                    found.setdefault(label, []).append(float((predicted & true).sum() / (predicted | true).sum()))
        config = self._config
        return [
            label
            for label, values in sorted(found.items())
            if np.mean(values) < config.good_enough
            and len(values)
            >= (config.least_images if np.mean(values) < config.known_from else config.least_images_known)
        ]

    def _tuned(self, examples: Sequence[Example], phase: str) -> Tensor:
        """Conditions after tuning, (P, E)."""
        about = [label for label in self._teachable if any(str(label) in example.present for example in examples)]
        tick = self._work.begin(phase, "conditions")
        if not about:
            return self._prompts.conditions.clone()
        config = self._config

        def fit() -> State:
            shared, own, parts = config.decoder, config.conditions, self._parts
            tuned = tune_conditions.tune(self._start, examples, self._prompts, about, own, shared, tick, parts)
            return {"conditions": tuned}

        return self._once(phase, fit)["conditions"]

    def _ask_options(self) -> dict[Option, Told]:
        """What images say of each option, of the labels that have it."""
        origin = [decoder_state(self._start)] * len(self._folds)
        several = [label for label in self._all if len(self._prompts.groups[label]) > 1]
        able: dict[Option, Sequence[int]] = {AS_CONFIGURED: self._all, MEAN: several}
        able.update(dict.fromkeys(sorted(self._config.shares), self._teachable))
        told: dict[Option, Told] = {}
        for option, labels in able.items():
            tables = [self._table(one, dict.fromkeys(labels, option)) for one in self._tables]
            told[option] = self._ask(tables, origin, labels)
        return told

    def _options(self, without: int | None = None) -> dict[int, Option]:
        """Per label the best of its options, as images say that are not of one fold."""
        if not self._folds:  # too few to choose: what is marked badly is learned, the rest is left alone
            return {label: 1.0 if label in self._teachable else AS_CONFIGURED for label in self._all}
        chosen: dict[int, Option] = {}
        for label in self._all:
            scores = {
                option: self._cut(label, _joined(told[label], without)).score
                for option, told in self._told.items()
                if label in told
            }
            best = max(scores, key=lambda option: scores[option])
            worth = scores[best] >= scores[AS_CONFIGURED] + self._config.least_gain
            chosen[label] = best if worth else AS_CONFIGURED
        return chosen

    def _of(self, options: Mapping[int, Option]) -> Told:
        """What images say of chosen options."""
        return {label: self._told[option][label] for label, option in options.items()} if self._folds else {}

    def _table(self, tuned: Tensor, options: Mapping[int, Option]) -> Tensor:
        """The conditions that options make of the text's and the learned ones."""
        table = self._prompts.conditions.clone().float()
        for label, option in options.items():
            rows = list(self._prompts.groups[label])
            if option == MEAN:
                table[rows] = table[rows].mean(0)
            elif option != AS_CONFIGURED:
                table[rows] = torch.lerp(table[rows], tuned[rows], float(option))
        return table

    # --- decoder -------------------------------------------------------------------------------------------
    def _fit(self, examples: Sequence[Example], table: Tensor, phase: str) -> State:
        tick = self._work.begin(phase, "decoder")
        prompts = replace(self._prompts, conditions=table)
        config = self._config.decoder

        def fit() -> State:
            return finetune_decoder.fit(self._start, examples, prompts, config, tick, self._parts)

        return self._once(phase, fit)

    def _once(self, phase: str, fit: Callable[[], State]) -> State:
        """What a fit comes to, found again where a former run of this training has finished it."""
        return fit() if self._checkpoints is None else self._checkpoints.get_or_fit(phase, fit)

    def _share(self, fitted: Sequence[State], tables: Sequence[Tensor], without: Told) -> tuple[float, Told]:
        """How far to go towards the fitted weights: where labels gain most at cuts that would be used."""
        origin = decoder_state(self._start)
        before = self._cuts(without)
        best, found, share = _gain(before) + self._config.least_gain, without, 0.0
        for now in sorted(self._config.decoder.interpolations):
            told = self._ask(tables, [interpolate(origin, state, now) for state in fitted], self._all)
            cuts = self._cuts(told)
            gain = _gain(cuts)
            paid = max((before[label].iou or 0.0) - (cuts[label].iou or 0.0) for label in self._all)
            if gain > best and paid <= self._config.most_label_loss:
                best, found, share = gain, told, now
        return share, found

    # --- what images say -----------------------------------------------------------------------------------
    def _ask(self, tables: Sequence[Tensor], states: Sequence[State], labels: Sequence[int]) -> Told:
        """What each fold's images say of its model."""
        told: Told = {label: [[] for _ in self._folds] for label in labels}
        wanted = set(labels)
        if not wanted:
            return told
        threads = min(_MOST_THREADS, torch.get_num_threads())
        decoder = copy.deepcopy(self._start).float()
        for number, (fold, table, state) in enumerate(zip(self._folds, tables, states, strict=True)):
            decoder.load_state_dict(state)
            prompts = replace(self._prompts, conditions=table)
            answers = (answer for example in fold.asked for answer in _answers(decoder, example, prompts, wanted))
            with closing(ahead((partial(_tally, *answer) for answer in answers), threads)) as tallies:
                for label, tally in tallies:
                    self._work.alive()
                    if tally is not None:
                        told[label][number].append(tally)
        return told

    def _cuts(self, told: Told, without: int | None = None) -> dict[int, Calibration]:
        """Each label's cut; the price of marking what is not there rises until it happens no more than before."""
        if not told:
            return {}
        tallies = {label: _joined(one, without) for label, one in told.items()}
        plain = {label: measure(_joined(one, without), 0.0) for label, one in self._told[AS_CONFIGURED].items()}
        cases = {label: sum(not tally.there for tally in found) for label, found in tallies.items()}
        most = _absent(plain, cases) + self._config.most_absent_rise
        cost = self._config.absent_cost
        while True:
            cuts = {
                label: self._cut(label, found, cost, least_iou=(plain[label].iou or 0.0) - self._config.most_label_loss)
                for label, found in tallies.items()
            }
            if _absent(cuts, cases) <= most or cost >= _DEAREST:
                return cuts
            cost = max(0.1, 1.5 * cost)

    def _cut(
        self, label: int, tallies: Sequence[Tally], cost: float | None = None, *, least_iou: float = 0.0
    ) -> Calibration:
        config = self._config
        cost = config.absent_cost if cost is None else cost
        # What is marked well is left as it is: a cut that suits a handful of images costs others more than it gains.
        if label not in self._teachable or self._labels.names[label] in self._labels.fixed_cut:
            return measure(tallies, cost)
        return calibrate(tallies, cost, least_gain=config.least_gain, least_images=config.cut_from, least_iou=least_iou)

    # --- result --------------------------------------------------------------------------------------------
    def _result(
        self,
        state: State,
        table: Tensor,
        options: Mapping[int, Option],
        cuts: Mapping[int, Calibration],
        share: float,
    ) -> Learned:
        names, phrases = self._labels.names, self._labels.phrases
        conditions = {
            phrase: table[row].clone()
            for label in self._all
            if options[label] != AS_CONFIGURED
            for phrase, row in zip(phrases[label], self._prompts.groups[label], strict=True)
        }
        own = {names[label]: cut for label, cut in cuts.items() if names[label] not in self._labels.fixed_cut}
        by_label: dict[str, dict[str, Any]] = {names[label]: {"conditions": options[label]} for label in self._all}
        for label, cut in cuts.items():
            by_label[names[label]] |= {"iou": cut.iou, "absent_marked": cut.marked}
        return Learned(
            state=join_state(state, conditions),
            cuts=Cuts(
                thresholds={name: round(cut.threshold, 4) for name, cut in own.items() if cut.threshold != 0.5},
                temperatures={name: cut.temperature for name, cut in own.items() if cut.temperature != 1.0},
                part_scores={name: round(cut.part_score, 4) for name, cut in own.items() if cut.part_score > 0},
            ),
            chosen={"decoder_share": share, "folds": len(self._folds), "labels": by_label},
        )


@dataclass(frozen=True)
class _Fold:
    """Examples to learn from, and those that are asked afterwards."""

    fitted: list[Example]
    asked: list[Example]


def _folds(examples: Sequence[Example], count: int) -> list[_Fold]:
    """Parts of the examples, balanced over labels, each with all others to learn from."""
    left = [(example.image, example.present) for example in examples]
    found = []
    for number in range(count):
        out = split.choose_held_out(left, [], round(len(left) / (count - number)))
        left = [(image, labels) for image, labels in left if image not in out]
        fitted = [example for example in examples if example.image not in out]
        found.append(_Fold(fitted, [example for example in examples if example.image in out]))
    return found


def _joined(told: Sequence[Sequence[Tally]], without: int | None = None) -> list[Tally]:
    """What the images of all folds but one say."""
    return [tally for number, found in enumerate(told) if number != without for tally in found]


def _absent(cuts: Mapping[int, Calibration], cases: Mapping[int, int]) -> float:
    """Share of all cases without a label in which it is marked."""
    return sum((cut.marked or 0.0) * cases[label] for label, cut in cuts.items()) / max(1, sum(cases.values()))


def _gain(cuts: Mapping[int, Calibration]) -> float:
    """Mean over labels of how well they are marked where they are."""
    return float(np.mean([cut.iou for cut in cuts.values() if cut.iou is not None] or [0.0]))


@torch.inference_mode()
def _answers(
    decoder: CLIPSegDecoder, example: Example, prompts: PromptTable, labels: set[int]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.uint8]]]:
    """Logits and target of each of an example's labels, its image as it is, each (h, w)."""
    device = next(decoder.parameters()).device
    pairs = zip(example.labels, example.targets[0], strict=True)
    asked = [(label, target) for label, target in pairs if label in labels]
    if not asked:
        return
    taps = tuple(tap.to(device, torch.float32) for tap in example.views[0].taps)
    rows = [row for label, _ in asked for row in prompts.groups[label]]
    logits = decoder(taps, prompts.conditions[rows].to(device)[None], example.views[0].grid_hw)[0].cpu()
    start = 0
    for label, target in asked:
        alternatives = len(prompts.groups[label])
        yield label, logits[start : start + alternatives].amax(0).numpy(), target
        start += alternatives


def _tally(label: int, logits: NDArray[np.float32], target: NDArray[np.uint8]) -> tuple[int, Tally | None]:
    return label, Tally.of(logits, target)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Products of matrices on a GPU in tf32, as its convolutions are anyway: far below what drawing batches changes."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


class _Work:
    """Progress over all that climbing does, by how long steps take."""

    def __init__(self, tick: Tick, config: RecipeConfig, folds: int, *, with_decoder: bool) -> None:
        self._tick = tick
        self._costs = {"conditions": float(config.conditions.steps), "decoder": 2.0 * config.decoder.steps}
        self._total = (folds + 1) * (self._costs["conditions"] + (self._costs["decoder"] if with_decoder else 0.0))
        self._done = 0.0

    def begin(self, phase: str, kind: str) -> Callable[[float, float], None]:
        """Progress of one fit."""
        base, cost = self._done, self._costs[kind]
        self._done += cost

        def tick(share: float, loss: float) -> None:
            self._tick(phase, min(1.0, (base + cost * share) / self._total), loss)

        return tick

    def end(self) -> None:
        """Say that all is done: what did not pay was not trained to the end."""
        self._tick("choosing", 1.0, None)

    def alive(self, phase: str = "choosing") -> None:
        """Say that it goes on, between fits."""
        self._tick(phase, min(1.0, self._done / self._total), None)

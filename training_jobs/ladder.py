"""How far to go with the corrections that there are: rungs of adapting, each only where it pays.

1. **Conditions or a head.** For each label: its phrases as they are, the mean of them where there are several, vectors
   learned from the masks (`recipes.tune_conditions`), all the way or half of it, or a head beside the decoder
   (`recipes.fit_mask_head`). A label that nothing helps keeps its phrases, and is answered as before to the bit. With
   `lora_from` images or more a head is tried with which the image encoder's last blocks learn too (LoRA), for the head
   alone; it is the head where it marks the labels better.
2. **Decoder.** With `decoder_from` images or more, where a label is still not marked well, its weights too
   (`recipes.finetune_decoder`), starting from the conditions that the first rung has found, and only so far (WiSE-FT,
   zero included) as no label loses. A label that a head marks better keeps the head.
3. **Cut.** Temperature, threshold and part score of each label (`recipes.calibrate`).

Everything is chosen by cross-validation **inside** the training part, by image: each image is answered by models that
have not learned from it, and the same answers choose all three. The held-out part is not seen here; the gate
(`training_jobs.promote`) looks at it once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend.manifest import Cuts
from training_jobs.copies import Copies
from training_jobs.cross_validation import (
    Fold,
    Told,
    absent_marked,
    answers_of_decoder,
    answers_of_head,
    folds_of,
    joined,
    mean_iou,
    told_by,
)
from training_jobs.fit_checkpoints import FitCheckpoints
from training_jobs.fit_progress import FitProgress, FitTick, Tick
from training_jobs.recipes import finetune_decoder, fit_mask_head, tune_conditions
from training_jobs.recipes.calibrate import Calibration, Tally, calibrate, measure
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import Example, PromptTable, State, decoder_state, interpolate
from training_jobs.side_by_side import Place, Places
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.learned_conditions import join_state
from vlm_core.mask_head import join_mask_head

Option = str | float
"""Of how a label is answered: one of the names below, or how far its conditions go from the text's towards what was
learned."""
_SAY_ENOUGH = 12
"""Images of a fold that may say that the decoder does not pay."""
AS_CONFIGURED = "as configured"
MEAN = "mean of the phrases"
HEAD = "head"
_DEAREST = 0.5
"""Of the price of marking a label in all images that do not show it, in IoU. Beyond it a cut leaves nothing at all of a
label that the model can hardly tell from others; whether the rest is worth it is for the gate to say."""


@dataclass(frozen=True)
class Learned:
    """What climbing has found.

    Attributes:
        state: for `Model.with_learned`: the decoder's weights, float32, CPU, learned conditions, and a head.
        cuts: how to decode each label for which that was chosen.
        chosen: JSON: per label how it is answered, the decoder's share, and what cross-validation said of both.
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
        devices: Sequence[torch.device] = (),
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        """Nothing is learned yet.

        Args:
            start: the base model's decoder; not changed. Its device is where answers are compared.
            examples: at least one, each image once. **Only** training images.
            prompts: of the labels, with the conditions of the text encoder.
            labels: their names and phrases.
            config: all settings. With equal input and threads, two runs on a CPU give equal bits.
            tick: see `Tick`.
            checkpoints: where fits that are finished are found again; None: nowhere.
            devices: that take fits, one each time that they are named; empty: the decoder's takes one after the other.
            blocks: of the image encoder (`Model.adaptable_blocks`); not changed. Empty: none can learn.

        Raises:
            ValueError: no example.
        """
        self._checkpoints = checkpoints
        if not examples:
            raise ValueError("nothing to train on: give at least one corrected image")
        ordered = sorted(examples, key=lambda example: example.image)  # the order of arrival changes nothing
        here = next(start.parameters()).device
        self._places = Places(devices or [here])
        self._start, self._prompts = start, prompts
        self._copies, self._blocks = Copies(start, ordered, blocks), blocks
        self._examples = ordered = self._copies.on(here).examples
        self._labels, self._config = labels, config
        self._all = range(len(labels.names))
        self._back: list[int] = []
        self._folds = folds_of(ordered, config.folds) if len(ordered) >= config.choose_from else []
        self._with_head = len(ordered) >= config.head_from
        self._with_decoder = bool(self._folds) and len(ordered) >= config.decoder_from
        enough = config.lora_from is not None and len(ordered) >= config.lora_from
        self._with_lora = self._with_head and bool(self._folds) and bool(blocks) and enough
        self._lora = False
        asked = {"head with LoRA": self._with_lora, "decoder": self._with_decoder}
        kinds = ["conditions", "head", *(kind for kind, there in asked.items() if there)]
        self._work = FitProgress(tick, config, len(self._folds), kinds)

    def learn(self) -> Learned:
        """Adapt to all examples, as far as cross-validation says that it pays."""
        with _threads(self._config.decoder.threads), _tensor_cores():
            self._teachable = self._badly_marked()
            count = len(self._folds)
            trials = [
                *(partial(self._tuned, one.fitted, f"trying phrases, {k} of {count}") for k, one in self._numbered()),
                *(partial(self._head, one.fitted, f"trying a head, {k} of {count}") for k, one in self._numbered()),
            ]
            if self._with_lora:
                phase = "trying a head with LoRA"
                trials += [
                    partial(self._head, one.fitted, f"{phase}, {k} of {count}", lora=True)
                    for k, one in self._numbered()
                ]
            found = self._places.all(trials)
            self._tables, self._heads = [state["conditions"] for state in found[:count]], found[count : 2 * count]
            self._told = self._ask_options(found[2 * count :])
            self._states = [decoder_state(self._start)] * count
            first, phrased = self._options(), self._options(barred=HEAD)
            options, told, state, share = first, self._of(first), decoder_state(self._start), 0.0
            fitted: list[State] = []
            if self._with_decoder and self._any_left(self._cuts(told)):
                tables = [self._table(one, phrased) for one in self._tables]
                fits = [
                    partial(self._fit, fold.fitted, tables[k - 1], f"trying the decoder, {k} of {count}")
                    for k, fold in self._numbered()
                ]
                with closing(self._places.each(fits)) as states:
                    for (number, fold), one in zip(self._numbered(), states, strict=True):
                        fitted.append(one)
                        if number == count or (number == 1 and len(fold.asked) >= _SAY_ENOUGH):
                            share, told, options = self._share(fitted, tables, self._of(first), phrased, first)
                            if not share:  # fits are long: what does not pay on the first fold's images is left
                                break
            table = self._prompts.conditions.clone().float()
            last: dict[str, Callable[[Place], State]] = {}
            if share or any(isinstance(option, float) for option in options.values()):
                last["conditions"] = partial(self._tuned, self._examples, "learning phrases")
            if HEAD in options.values():
                last["head"] = partial(self._head, self._examples, "learning a head", lora=self._lora)
            learned_last = dict(zip(last, self._places.all(last.values()), strict=True))
            if "conditions" in learned_last:
                table = learned_last["conditions"]["conditions"]
            table = self._table(table, phrased)
            if share:
                self._states = [interpolate(state, one, share) for one in fitted]
                fit = partial(self._fit, self._examples, table, "learning the decoder")
                state = interpolate(state, self._places.all([fit])[0], share)
            learned = self._result(state, table, options, self._cuts(told), share, learned_last.get("head"))
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
            options, phrased = self._options({number}), self._options({number}, HEAD)
            options |= {label: phrased[label] for label in self._back}
            table, state = self._table(self._tables[number], options), self._states[number]
            cuts = self._cuts(self._of(options), without={number})
            images = frozenset(example.image for example in fold.asked)
            found.append((images, self._result(state, table, options, cuts, 0.0, self._heads[number])))
        return found

    # --- conditions ----------------------------------------------------------------------------------------
    def _badly_marked(self) -> list[int]:
        """Labels that enough images show and that are not marked well as they are.

        Few images are of few kinds. What is learned from them replaces nothing where a label is not known at all; of
        one that is half known it may forget the other kinds, which no split of these images can show.
        """
        found: dict[int, list[float]] = {}
        for example in self._examples:
            self._work.alive("looking at the labels")
            for label, logits, target in answers_of_decoder(self._start, example, self._prompts, set(self._all)):
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

    def _tuned(self, examples: Sequence[Example], phase: str, place: Place) -> State:
        """`conditions` after tuning, (P, E)."""
        about = [label for label in self._teachable if any(str(label) in example.present for example in examples)]
        if not about:
            self._work.skip(phase, "conditions")
            return {"conditions": self._prompts.conditions.clone()}

        def fit(tick: FitTick) -> State:
            shared, own, at = self._config.decoder, self._config.conditions, self._copies.on(place.device)
            seen = at.of(examples)
            return {
                "conditions": tune_conditions.tune(at.decoder, seen, self._prompts, about, own, shared, tick, at.parts)
            }

        return self._once(phase, "conditions", place, fit)

    def _ask_options(self, with_lora: list[State]) -> dict[Option, Told]:
        """What images say of each option, of the labels that have it.

        Args:
            with_lora: heads of the folds with which blocks of the encoder have learned; they become the heads where
                they are better.
        """
        origin = [decoder_state(self._start)] * len(self._folds)
        several = [label for label in self._all if len(self._prompts.groups[label]) > 1]
        able: dict[Option, Sequence[int]] = {AS_CONFIGURED: self._all, MEAN: several}
        able.update(dict.fromkeys(sorted(self._config.shares), self._teachable))
        told: dict[Option, Told] = {}
        for option, labels in able.items():
            tables = [self._table(one, dict.fromkeys(labels, option)) for one in self._tables]
            told[option] = self._ask(tables, origin, labels)
        if all(self._heads):
            told[HEAD] = self._ask_heads(self._heads)
            if with_lora:
                other = self._ask_heads(with_lora)
                gain = [self._worth(label, other[label]) - self._worth(label, told[HEAD][label]) for label in other]
                if np.mean(gain) >= self._config.least_gain:
                    told[HEAD], self._heads, self._lora = other, with_lora, True
        return told

    def _ask_heads(self, states: Sequence[State]) -> Told:
        """What images say of the heads of all folds."""
        device = next(self._start.parameters()).device
        heads = [fit_mask_head.head_of(self._start.config, state, device, self._blocks) for state in states]
        answers = [partial(answers_of_head, head, labels=set(self._teachable)) for head in heads]
        return told_by(self._folds, answers, self._teachable, self._work.alive)

    def _worth(self, label: int, told: Sequence[Sequence[Tally]]) -> float:
        return self._cut(label, joined(told)).score

    def _options(self, without: Collection[int] = (), barred: Option | None = None) -> dict[int, Option]:
        """Per label the best of its options that are not barred, as images say that are not of some folds.

        A label that would be marked nearly everywhere stays as it was: it helps nobody, and the gate would not publish
        the others with it.
        """
        if not self._folds:  # too few to choose: what is marked badly is learned, the rest is left alone
            learned: Option = HEAD if self._with_head and barred != HEAD else 1.0
            return {label: learned if label in self._teachable else AS_CONFIGURED for label in self._all}
        chosen: dict[int, Option] = {}
        for label in self._all:
            cuts = {
                option: self._cut(label, joined(told[label], without))
                for option, told in self._told.items()
                if label in told and option != barred
            }
            most = max(self._config.most_marked, cuts[AS_CONFIGURED].marked or 0.0)
            scores = {option: cut.score for option, cut in cuts.items() if (cut.marked or 0.0) <= most}
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
            elif isinstance(option, float):
                table[rows] = torch.lerp(table[rows], tuned[rows], option)
        return table

    def _head(self, examples: Sequence[Example], phase: str, place: Place, *, lora: bool = False) -> State:
        """The weights of a head after learning; empty where there is nothing to teach it."""
        kind = "head with LoRA" if lora else "head"
        if not (self._teachable and self._with_head):
            self._work.skip(phase, kind)
            return {}

        def fit(tick: FitTick) -> State:
            own, shared, at = self._config.head, self._config.decoder, self._copies.on(place.device)
            seen = at.of(examples)
            blocks = at.blocks if lora else ()
            return fit_mask_head.fit(
                self._start.config, seen, self._prompts, own, shared, tick, at.parts, place.device, blocks
            )

        return self._once(phase, kind, place, fit)

    # --- decoder -------------------------------------------------------------------------------------------
    def _fit(self, examples: Sequence[Example], table: Tensor, phase: str, place: Place) -> State:
        def fit(tick: FitTick) -> State:
            prompts, at = replace(self._prompts, conditions=table), self._copies.on(place.device)
            seen, alive = at.of(examples), partial(self._work.alive, phase)
            return finetune_decoder.fit(at.decoder, seen, prompts, self._config.decoder, tick, at.parts, alive)

        return self._once(phase, "decoder", place, fit)

    def _once(self, phase: str, kind: str, place: Place, fit: Callable[[FitTick], State]) -> State:
        """What a fit comes to, found again where a former run of this training has finished it."""
        with self._work.of(phase, kind, place) as tick:
            return fit(tick) if self._checkpoints is None else self._checkpoints.get_or_fit(phase, partial(fit, tick))

    def _numbered(self) -> Iterator[tuple[int, Fold]]:
        return enumerate(self._folds, 1)

    def _any_left(self, cuts: Mapping[int, Calibration]) -> bool:
        """Whether a label is still not marked well."""
        return any(cut.iou is not None and cut.iou < self._config.good_enough for cut in cuts.values())

    def _share(
        self,
        fitted: Sequence[State],
        tables: Sequence[Tensor],
        without: Told,
        phrased: Mapping[int, Option],
        options: dict[int, Option],
    ) -> tuple[float, Told, dict[int, Option]]:
        """How far to go towards the fitted weights: where labels gain most at cuts that would be used.

        Args:
            fitted, tables: the decoder's weights and its conditions, of the first folds or of all.
            without: what images say of the options.
            phrased: the best options without heads.
            options: the best options.

        Returns:
            The share, what images say with it, and options: a label that it marks better than its head gives that up.
        """
        origin = decoder_state(self._start)
        unasked = range(len(fitted), len(self._folds))
        before = self._cuts(without, unasked)
        best, found, share, chosen = mean_iou(before) + self._config.least_gain, without, 0.0, options
        headed = [label for label, option in options.items() if option == HEAD]
        self._back = []
        for now in sorted(self._config.decoder.interpolations):
            told = self._ask(tables, [interpolate(origin, state, now) for state in fitted], self._all)
            back = [
                label
                for label in headed
                if self._cut(label, joined(told[label])).score
                > self._cut(label, joined(without[label], unasked)).score + self._config.least_gain
            ]
            told |= {label: without[label] for label in headed if label not in back}
            cuts = self._cuts(told, unasked)
            gain = mean_iou(cuts)
            paid = max((before[label].iou or 0.0) - (cuts[label].iou or 0.0) for label in self._all)
            if gain > best and paid <= self._config.most_label_loss:
                best, found, share, self._back = gain, told, now, back
                chosen = options | {label: phrased[label] for label in back}
        return share, found, chosen

    # --- what images say -----------------------------------------------------------------------------------
    def _ask(self, tables: Sequence[Tensor], states: Sequence[State], labels: Sequence[int]) -> Told:
        """What images say of the decoders of the first folds, as many as there are states."""
        answers = []
        for state, table in zip(states, tables, strict=False):
            decoder = copy.deepcopy(self._start).float()
            decoder.load_state_dict(state)
            prompts = replace(self._prompts, conditions=table)
            answers.append(partial(answers_of_decoder, decoder, prompts=prompts, labels=set(labels)))
        return told_by(self._folds, answers, labels, self._work.alive)

    def _cuts(self, told: Told, without: Collection[int] = ()) -> dict[int, Calibration]:
        """Each label's cut; the price of marking what is not there rises until it happens no more than before."""
        if not told:
            return {}
        tallies = {label: joined(one, without) for label, one in told.items()}
        plain = {label: measure(joined(one, without), 0.0) for label, one in self._told[AS_CONFIGURED].items()}
        cases = {label: sum(not tally.there for tally in found) for label, found in tallies.items()}
        most = absent_marked(plain, cases) + self._config.most_absent_rise
        cost = self._config.absent_cost
        while True:
            cuts = {
                label: self._cut(label, found, cost, least_iou=(plain[label].iou or 0.0) - self._config.most_label_loss)
                for label, found in tallies.items()
            }
            if absent_marked(cuts, cases) <= most or cost >= _DEAREST:
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
        head: State | None,
    ) -> Learned:
        names, phrases = self._labels.names, self._labels.phrases
        conditions = {
            phrase: table[row].clone()
            for label in self._all
            if options[label] not in (AS_CONFIGURED, HEAD)
            for phrase, row in zip(phrases[label], self._prompts.groups[label], strict=True)
        }
        outputs = {phrase: label for label in self._all if options[label] == HEAD for phrase in phrases[label]}
        masks = {}
        if outputs:
            assert head  # learned where a label has chosen it
            made = fit_mask_head.head_of(self._start.config, head, torch.device("cpu"), self._blocks)
            masks = join_mask_head(made, outputs)
        own = {names[label]: cut for label, cut in cuts.items() if names[label] not in self._labels.fixed_cut}
        by_label: dict[str, dict[str, Any]] = {names[label]: {"answered_by": options[label]} for label in self._all}
        for label, cut in cuts.items():
            by_label[names[label]] |= {"iou": cut.iou, "absent_marked": cut.marked}
        return Learned(
            state={**join_state(state, conditions), **masks},
            cuts=Cuts(
                thresholds={name: round(cut.threshold, 4) for name, cut in own.items() if cut.threshold != 0.5},
                temperatures={name: cut.temperature for name, cut in own.items() if cut.temperature != 1.0},
                part_scores={name: round(cut.part_score, 4) for name, cut in own.items() if cut.part_score > 0},
            ),
            chosen={
                "decoder_share": share,
                "folds": len(self._folds),
                "labels": by_label,
                **({"lora": self._lora} if self._with_lora else {}),
            },
        )


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

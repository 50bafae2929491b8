"""Climbing on features made by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block

from backend.decoding import decode_label
from tests.jobs.handmade import QUICK, examples, for_steps, make_blocks, make_decoder, switched_example
from training_jobs.ladder import AS_CONFIGURED, HEAD, MEAN, Climb, Labels, Learned
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import Example, PromptTable, fit
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.tune_conditions import ConditionsConfig, tune
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.learned_conditions import PREFIX, split_state
from vlm_core.mask_head import split_mask_head

LABELS = Labels(("first", "second"), (("one",), ("two", "zwei")))
CONFIG = RecipeConfig(
    decoder=QUICK,
    conditions=ConditionsConfig(steps=150, learning_rate=0.2, pull=0.0),
    head=MaskHeadConfig(steps=100, hidden=32, weight_decay=0.1),
    folds=2,
    head_from=400,
    decoder_from=400,
)


UNTUNED = ConditionsConfig(steps=1)
UNIT = torch.eye(5)
NEW = PromptTable(torch.stack([-2 * UNIT[3], -2 * UNIT[4], 2 * UNIT[0] - 2 * UNIT[4]]), ((0,), (1, 2)))
"""Phrases that are far from what the decoder of `taught` knows."""


def quiet(phase: str, share: float, loss: float | None) -> None: ...


def climb(
    start: CLIPSegDecoder,
    some: list[Example],
    *,
    labels: Labels = LABELS,
    table: PromptTable | None = None,
    tick: Any = quiet,
    blocks: Sequence[Block] = (),
    **changed: Any,
) -> Climb:
    return Climb(start, some, table or NEW, labels, CONFIG.model_copy(update=changed), tick, blocks=blocks)


@pytest.fixture(scope="module")
def taught() -> CLIPSegDecoder:
    """A decoder that knows both labels under the conditions 3 and 4, and no other phrase."""
    decoder = make_decoder()
    known = PromptTable(torch.eye(5)[[3, 4]] * 2, ((0,), (1,)))
    decoder.load_state_dict(fit(decoder, examples(range(40)), known, for_steps(QUICK, 200), lambda share, loss: None))
    return decoder


def ious(start: CLIPSegDecoder, learned: Learned, some: list[Example]) -> list[float]:
    """Mean IoU of each label where it is there, as serving decodes."""
    others, head = split_mask_head(learned.state, start.config)
    weights, conditions = split_state(others)
    decoder = copy.deepcopy(start)
    decoder.load_state_dict(weights)
    table = NEW.conditions.clone()
    for row, phrase in enumerate(("one", "two", "zwei")):
        table[row] = conditions.get(phrase, table[row])
    found: list[list[float]] = [[], []]
    for item in some:
        view = item.views[0]
        with torch.no_grad():
            taps = [tap.float() for tap in view.taps]
            logits = decoder(taps, table[None], view.grid_hw)[0]
            if head is not None:
                own = head.on_grid(head(taps, view.grid_hw))[0]
                for row, phrase in enumerate(("one", "two", "zwei")):
                    if phrase in head.phrases:
                        logits[row] = own[head.phrases.index(phrase)]
        for label, group in enumerate(NEW.groups):
            name = LABELS.names[label]
            decoded = decode_label(
                logits[list(group)].numpy(),
                (8, 8),
                threshold=learned.cuts.thresholds.get(name, 0.5),
                temperature=learned.cuts.temperatures.get(name, 1.0),
                min_part_score=learned.cuts.part_scores.get(name, 0.0),
            )
            marked = np.zeros((8, 8), dtype=bool) if decoded.mask is None else decoded.mask.to_array()
            true = item.targets[0][label] >= 128
            if true.any():
                found[label].append(float((marked & true).sum() / (marked | true).sum()))
    return [float(np.mean(values)) for values in found]


def same(one: Learned, other: Learned) -> bool:
    return (
        one.state.keys() == other.state.keys()
        and all(torch.equal(value, other.state[name]) for name, value in one.state.items())
        and (one.cuts, one.chosen) == (other.cuts, other.chosen)
    )


def test_new_words_for_what_the_decoder_can_do_are_learned_without_touching_a_weight(taught: CLIPSegDecoder) -> None:
    unseen = examples(range(100, 130))
    nothing = Learned(dict(taught.state_dict()))
    learned = climb(taught, examples(range(50, 74))).learn()
    before, after = ious(taught, nothing, unseen), ious(taught, learned, unseen)
    assert min(after) > 0.55 > 0.35 > max(before)
    weights, conditions = split_state(learned.state)
    assert all(torch.equal(value, taught.state_dict()[name]) for name, value in weights.items())
    assert set(conditions) == {"one", "two", "zwei"}


def test_a_label_that_is_marked_well_keeps_its_phrases_to_the_bit(taught: CLIPSegDecoder) -> None:
    table = PromptTable(torch.cat([2 * UNIT[3:4], NEW.conditions[1:]]), NEW.groups)  # it knows the first one's phrase
    learned = climb(taught, examples(range(50, 74)), table=table).learn()
    assert "one" not in split_state(learned.state)[1]
    assert learned.chosen["labels"]["first"]["answered_by"] == AS_CONFIGURED
    assert learned.chosen["labels"]["second"]["answered_by"] != AS_CONFIGURED


def test_where_nothing_is_to_be_gained_nothing_changes(taught: CLIPSegDecoder) -> None:
    table = PromptTable(torch.eye(5)[[3, 4, 4]] * 2, ((0,), (1, 2)))
    run = climb(taught, examples(range(50, 74)), table=table, decoder_from=12, least_gain=0.05)
    learned = run.learn()
    weights, conditions = split_state(learned.state)
    assert not conditions
    assert all(torch.equal(value, taught.state_dict()[name]) for name, value in weights.items())
    assert (learned.chosen["decoder_share"], learned.cuts.thresholds) == (0.0, {})


def test_the_decoder_learns_where_there_are_enough_images_and_it_pays() -> None:
    start, some, unseen = make_decoder(), examples(range(32)), examples(range(100, 130))
    short = climb(start, some, decoder_from=33).learn()
    learned = climb(start, some, decoder_from=32).learn()
    assert short.chosen["decoder_share"] == 0.0
    assert learned.chosen["decoder_share"] > 0
    assert sum(ious(start, learned, unseen)) > sum(ious(start, short, unseen)) + 0.1


def test_what_the_decoder_cannot_tell_apart_gets_a_head() -> None:
    start, some, unseen = make_decoder(), examples(range(48)), examples(range(100, 130))
    phrases = climb(start, some).learn()
    learned = climb(start, some, head_from=48).learn()
    assert [learned.chosen["labels"][name]["answered_by"] for name in LABELS.names] == [HEAD, HEAD]
    assert min(ious(start, learned, unseen)) > 0.6 > 0.4 > max(ious(start, phrases, unseen))
    weights, conditions = split_state(split_mask_head(learned.state, start.config)[0])
    assert not conditions
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in weights.items())


def test_the_encoders_blocks_learn_with_the_head_where_that_is_better() -> None:
    blocks, start, phases = make_blocks(), make_decoder(), list[str]()
    some = [switched_example(number, blocks) for number in range(48)]
    given: dict[str, Any] = {"head_from": 4, "lora_from": 48, "conditions": UNTUNED, "blocks": blocks, "cut_from": 400}
    run = climb(start, some, tick=lambda phase, share, loss: phases.append(phase), **given)
    learned = run.learn()
    assert learned.chosen["lora"] is True
    assert learned.chosen["labels"]["first"]["answered_by"] == HEAD
    assert learned.chosen["labels"]["first"]["absent_marked"] < 0.1
    fits = list(dict.fromkeys(phase for phase in phases if "head" in phase))
    assert fits == [f"trying a head{with_lora}, {k} of 2" for with_lora in ("", " with LoRA") for k in (1, 2)] + [
        "learning a head"
    ]
    for state in (learned.state, *(fold.state for _, fold in run.by_folds())):
        head = split_mask_head(state, start.config, blocks)[1]
        assert head is not None
        assert head.adapted is not None

    plain = climb(start, some, **given | {"lora_from": 49}).learn()
    assert "lora" not in plain.chosen
    assert plain.chosen["labels"]["first"]["absent_marked"] > 0.5

    still = CONFIG.head.model_copy(update={"lora_rate": 1e-9})  # blocks that learn nothing are not taken
    easy = climb(start, some, **given | {"head": still}).learn()
    assert easy.chosen["lora"] is False
    assert not any("changes" in name for name in easy.state)


def test_a_label_that_is_marked_well_gets_no_head(taught: CLIPSegDecoder) -> None:
    table = PromptTable(torch.cat([2 * UNIT[3:4], NEW.conditions[1:]]), NEW.groups)  # it knows the first one's phrase
    learned = climb(taught, examples(range(50, 74)), table=table, head_from=4, conditions=UNTUNED).learn()
    assert [learned.chosen["labels"][name]["answered_by"] for name in LABELS.names] == [AS_CONFIGURED, HEAD]
    head = split_mask_head(learned.state, taught.config)[1]
    assert head is not None
    assert head.phrases == ("two", "zwei")


def test_a_decoder_that_marks_a_label_better_than_its_head_takes_it_back() -> None:
    start, some = make_decoder(), examples(range(32))
    poor = CONFIG.head.model_copy(update={"steps": 14})
    short = climb(start, some, head=poor, head_from=4).learn()
    assert short.chosen["labels"]["second"]["answered_by"] == HEAD
    learned = climb(start, some, head=poor, head_from=4, decoder_from=32).learn()
    assert learned.chosen["decoder_share"] > 0
    assert learned.chosen["labels"]["second"]["answered_by"] != HEAD
    assert learned.chosen["labels"]["second"]["iou"] > short.chosen["labels"]["second"]["iou"] + 0.01


def test_a_label_that_would_be_marked_everywhere_stays_as_it_was_and_keeps_no_other_back() -> None:
    """One label is where channel 0 says so; the other one is in half of the images, at places that nothing tells."""
    start, some = make_decoder(), []
    with torch.no_grad():
        start.transposed_convolution.bias -= 10.0  # it marks nothing
    for number, item in enumerate(examples(range(48))):
        random = np.zeros((8, 8), dtype=np.uint8)
        if number % 2:
            random[2 * (number // 2 % 4) :][:2] = 255
        some.append(replace(item, targets=tuple(np.stack([target[0], random]) for target in item.targets)))
    cheap = climb(start, some, head_from=4, absent_cost=0.0, most_absent_rise=1.0).learn().chosen["labels"]
    assert [cheap[name]["answered_by"] for name in LABELS.names] == [HEAD, HEAD]
    assert cheap["second"]["absent_marked"] > 0.5
    strict = climb(start, some, head_from=4, absent_cost=0.0, most_absent_rise=1.0, most_marked=0.5).learn()
    found = strict.chosen["labels"]
    assert [found[name]["answered_by"] for name in LABELS.names] == [HEAD, AS_CONFIGURED]
    assert found["second"]["absent_marked"] == 0.0


def phases_of(start: CLIPSegDecoder, **changed: Any) -> list[str]:
    phases: list[str] = []
    climb(start, examples(range(32)), tick=lambda phase, share, loss: phases.append(phase), **changed).learn()
    return [phase for phase in dict.fromkeys(phases) if "decoder" in phase]


def test_the_decoder_is_tried_only_as_long_as_it_may_pay(taught: CLIPSegDecoder) -> None:
    known = PromptTable(torch.eye(5)[[3, 4, 4]] * 2, ((0,), (1, 2)))
    assert phases_of(taught, table=known, good_enough=0.1, decoder_from=32) == []  # all is marked well
    assert phases_of(make_decoder(), least_gain=1.0, decoder_from=32) == ["trying the decoder, 1 of 2"]
    all_of_it = ["trying the decoder, 1 of 2", "trying the decoder, 2 of 2", "learning the decoder"]
    assert phases_of(make_decoder(), decoder_from=32) == all_of_it


def test_of_several_phrases_their_mean_is_tried() -> None:
    start = make_decoder()
    known = PromptTable(torch.eye(5)[[0, 1]] * 2, ((0,), (1,)))
    start.load_state_dict(fit(start, examples(range(40)), known, for_steps(QUICK, 400), lambda share, loss: None))
    away = torch.eye(5)[2] * 20
    table = PromptTable(
        torch.stack([torch.eye(5)[0] * 2, torch.eye(5)[1] * 2 + away, torch.eye(5)[1] * 2 - away]), ((0,), (1, 2))
    )  # either phrase is far off, their mean is right
    learned = climb(start, examples(range(50, 74)), table=table, least_images=99).learn()
    assert learned.chosen["labels"]["second"]["answered_by"] == MEAN
    conditions = split_state(learned.state)[1]
    torch.testing.assert_close(conditions["two"], torch.eye(5)[1] * 2)
    assert torch.equal(conditions["two"], conditions["zwei"])


def test_a_threshold_of_the_labelling_config_stays(taught: CLIPSegDecoder) -> None:
    shifted = copy.deepcopy(taught)
    with torch.no_grad():
        for parameter in shifted.transposed_convolution.parameters():
            parameter *= 0.2
        shifted.transposed_convolution.bias += 2.0  # marks too much everywhere
    table = PromptTable(torch.eye(5)[[3, 4, 4]] * 2, ((0,), (1, 2)))
    some = examples(range(50, 74))
    free = climb(shifted, some, table=table, cut_from=3, least_images_known=3, good_enough=1.0, shares=(0.001,)).learn()
    assert free.cuts.thresholds["first"] > 0.5
    labels = replace(LABELS, fixed_cut=frozenset({"first"}))
    fixed = climb(
        shifted, some, table=table, labels=labels, cut_from=3, least_images_known=3, good_enough=1.0, shares=(0.001,)
    ).learn()
    assert "first" not in {*fixed.cuts.thresholds, *fixed.cuts.temperatures, *fixed.cuts.part_scores}
    assert "second" in fixed.cuts.thresholds


def test_the_result_depends_on_the_seed_and_not_on_the_order_and_leaves_the_start_alone(
    taught: CLIPSegDecoder,
) -> None:
    some, before = examples(range(50, 66)), copy.deepcopy(taught.state_dict())
    first = climb(taught, some, decoder_from=12).learn()
    assert same(first, climb(taught, some[::-1], decoder_from=12).learn())
    other = climb(taught, some, decoder_from=12, decoder=QUICK.model_copy(update={"seed": 1})).learn()
    assert not same(first, other)
    assert all(torch.equal(value, taught.state_dict()[name]) for name, value in before.items())


def test_from_few_images_nothing_is_chosen_and_bad_labels_are_learned(taught: CLIPSegDecoder) -> None:
    phases: list[str] = []
    run = climb(taught, examples(range(50, 57)), tick=lambda phase, share, loss: phases.append(phase))
    learned = run.learn()
    assert list(dict.fromkeys(phases)) == ["looking at the labels", "learning phrases", "choosing"]
    assert learned.chosen["folds"] == 0
    assert learned.chosen["labels"]["first"]["answered_by"] == 1.0
    assert run.by_folds() == []
    headed = climb(taught, examples(range(50, 57)), head_from=7).learn()
    assert headed.chosen["labels"]["first"]["answered_by"] == HEAD


@pytest.mark.parametrize(("changed", "prefix"), [({}, PREFIX), ({"head_from": 4, "conditions": UNTUNED}, "mask_head.")])
def test_each_fold_is_judged_by_what_has_not_seen_it(
    taught: CLIPSegDecoder, changed: dict[str, Any], prefix: str
) -> None:
    some = examples(range(50, 74))
    run = climb(taught, some, **changed)
    run.learn()
    folds = run.by_folds()
    assert sorted(image for images, _ in folds for image in images) == sorted(item.image for item in some)
    # Other masks for a fold's images change what is learned for others, and not what it is judged by.
    images = folds[0][0]
    poisoned = [
        replace(item, targets=tuple(t[:, ::-1].copy() for t in item.targets)) if item.image in images else item
        for item in some
    ]
    again = climb(taught, poisoned, **changed)
    again.learn()
    own, other = ([fold[1].state for fold in (one, two)] for one, two in zip(folds, again.by_folds(), strict=True))
    shared = [name for name in own[0] if name in own[1] and name.startswith(prefix)]
    assert shared
    assert all(torch.equal(own[0][name], own[1][name]) for name in shared)
    assert any(not torch.equal(value, other[1][name]) for name, value in other[0].items() if name in other[1])


def test_marking_what_is_not_there_does_not_rise(taught: CLIPSegDecoder) -> None:
    some, unseen = examples(range(50, 98)), examples(range(200, 300))
    learned = climb(taught, some, most_absent_rise=0.0, absent_cost=0.0).learn()
    marked = learned.chosen["labels"]["second"]["absent_marked"]
    free = climb(taught, some, most_absent_rise=1.0, absent_cost=0.0).learn()
    assert marked <= free.chosen["labels"]["second"]["absent_marked"]
    assert learned.cuts.thresholds.get("second", 0.5) >= free.cuts.thresholds.get("second", 0.5)
    assert ious(taught, learned, unseen)[1] > 0.3


def test_progress_grows_to_the_end_and_can_give_up(taught: CLIPSegDecoder) -> None:
    shares: list[float] = []
    climb(taught, examples(range(50, 66)), decoder_from=12, tick=lambda p, share, loss: shares.append(share)).learn()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    class GaveUpError(Exception): ...

    def tick(phase: str, share: float, loss: float) -> None:
        raise GaveUpError

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # another number than the recipe's
    try:
        with pytest.raises(GaveUpError):
            climb(taught, examples(range(50, 54)), tick=tick).learn()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_count_say_what_one_says(taught: CLIPSegDecoder) -> None:
    def told(threads: int) -> list[object]:
        run = climb(taught, examples(range(50, 66)), decoder_from=100)
        shared = run._config.decoder.model_copy(update={"threads": threads})
        run._config = run._config.model_copy(update={"decoder": shared})
        learned = run.learn()
        return [learned.chosen["labels"], learned.cuts, run.by_folds()[0][1].chosen["labels"]]

    assert told(2) == told(1)


def test_nothing_to_train_on_is_an_error(taught: CLIPSegDecoder) -> None:
    with pytest.raises(ValueError, match="at least one corrected image"):
        climb(taught, [])


def test_tuning_moves_only_the_rows_of_its_labels(taught: CLIPSegDecoder) -> None:
    config = ConditionsConfig(steps=5)
    table = tune(taught, examples(range(8)), NEW, [1], config, QUICK, lambda share, loss: None)
    assert torch.equal(table[0], NEW.conditions[0])
    assert not torch.equal(table[1], NEW.conditions[1])
    only = [replace(item, labels=(0,), targets=tuple(t[:1] for t in item.targets)) for item in examples(range(4))]
    with pytest.raises(ValueError, match="no example speaks about"):
        tune(taught, only, NEW, [1], config, QUICK, lambda share, loss: None)

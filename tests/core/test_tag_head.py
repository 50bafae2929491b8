"""Answers that were learned: kept and read back to the bit, and answered beside labels that came later."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

import vlm_core
from tests.core.factories import make_clipseg_directory
from vlm_core.errors import CapabilityError, CheckpointMismatchError, InputError
from vlm_core.model import Model
from vlm_core.tag_head import TagHead, join_heads, split_heads

LABELS = ("dog", 'a "quoted" / label', "größer")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (50, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


def head(model: Model, *, multiple: bool = False, labels: tuple[str, ...] = LABELS) -> TagHead:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(len(labels), model.clip.projection_dim, generator=generator)
    return TagHead(labels, weight, torch.randn(len(labels), generator=generator), 12.5, -3.25, multiple)


def test_what_is_kept_comes_back_to_the_bit(model: Model) -> None:
    heads = {"kind": head(model), "with.dots [and] more": head(model, multiple=True, labels=("only one",))}
    tensors = load(save({"film.weight": torch.ones(2), **join_heads(heads)}))
    others, again = split_heads(tensors)
    assert others.keys() == {"film.weight"}
    assert again.keys() == heads.keys()
    for name, own in heads.items():
        found = again[name]
        assert (found.scale, found.offset, found.multiple) == (12.5, -3.25, own.multiple)
        order = [found.labels.index(label) for label in own.labels]
        assert torch.equal(found.weight[order], own.weight)
        assert torch.equal(found.bias[order], own.bias)


@pytest.mark.parametrize("multiple", [False, True])
def test_probabilities_are_those_of_the_linear_classifier(model: Model, multiple: bool) -> None:
    own = head(model, multiple=multiple)
    served = model.with_learned(join_heads({"kind": own}))
    features = served.encode_image(picture(1), masks=False, tags=True)
    assert features.image_embeds is not None
    logits = own.weight @ features.image_embeds[0] + own.bias
    expected = logits.sigmoid() if multiple else logits.softmax(0)
    scores = served.classify_features(features, "kind", dict.fromkeys(LABELS, ("any phrase",)))
    assert {score.tag: score.probability for score in scores} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6
    )
    assert [score.similarity for score in scores] == sorted((score.similarity for score in scores), reverse=True)


def test_a_label_that_came_later_is_answered_by_its_best_phrase(model: Model) -> None:
    own = head(model)
    served = model.with_learned(join_heads({"kind": own}))
    features = served.encode_image(picture(1), masks=False, tags=True)
    phrases = ("a cat", "a kitten")
    scores = {s.tag: s for s in served.classify_features(features, "kind", {"dog": ("x",), "cat": phrases})}
    cosine = max(score.similarity for score in model.rank_features(features, phrases))
    assert scores["cat"].similarity == pytest.approx(12.5 * cosine - 3.25, abs=1e-5)
    assert sum(score.probability for score in scores.values()) == pytest.approx(1)


def test_a_head_that_starts_at_the_texts_ranks_as_zero_shot(model: Model) -> None:
    tags = ["a dog", "a cat", "a horse"]
    start = TagHead(tuple(tags), model.tag_scale * model.text_embeds(tags), torch.zeros(3), model.tag_scale, 0.0, False)
    served = model.with_learned(join_heads({"kind": start}))
    features = model.encode_image(picture(2), masks=False, tags=True)
    found = served.classify_features(features, "kind", {tag: (tag,) for tag in tags})
    expected = model.rank_features(features, tags)
    assert [score.tag for score in found] == [score.tag for score in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_masks_and_other_questions_stay_as_they_are(model: Model) -> None:
    served = model.with_learned(join_heads({"kind": head(model)}))
    assert served.decoder is model.decoder
    assert model.tag_heads == {}
    with pytest.raises(InputError, match="'other' was not learned"):
        served.classify_features(served.encode_image(picture(1), masks=False, tags=True), "other", {"a": ("a",)})


def test_a_checkpoint_without_decoder_serves_heads_and_refuses_masks(model: Model) -> None:
    only_tags = Model(
        clip=model.clip,
        decoder=None,
        tokenizer=model.tokenizer,
        mask_transform=None,
        tag_transform=model.tag_transform,
        name="tags",
        fingerprint="0" * 64,
    )
    assert only_tags.with_learned(join_heads({"kind": head(model)})).tag_heads.keys() == {"kind"}
    with pytest.raises(CapabilityError):
        only_tags.with_learned({"film.weight": torch.ones(2)})


def test_what_does_not_fit_is_refused(model: Model) -> None:
    whole = join_heads({"kind": head(model)})
    narrow = {name: value[:-1] if value.numel() > 3 else value for name, value in whole.items()}
    with pytest.raises(CheckpointMismatchError, match="'kind' are for embeddings"):
        model.with_learned(narrow)
    one_short = dict(whole)
    del one_short['tag_heads.["kind"]']
    with pytest.raises(CheckpointMismatchError, match="'kind' are not whole"):
        split_heads(one_short)
    with pytest.raises(CheckpointMismatchError, match="'kind' are not whole"):
        split_heads({'tag_heads.["kind"]': whole['tag_heads.["kind"]']})
    for name in ("tag_heads.kind", "tag_heads.[1]", 'tag_heads.["a", "b", "c"]'):
        with pytest.raises(CheckpointMismatchError, match="names no learned answer"):
            split_heads({name: torch.zeros(3)})

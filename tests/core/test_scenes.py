"""Generated scenes: the same for a seed, at any size, and phrases that mean what they say."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.demo.drawing import BACKGROUNDS, COLOURS, PATTERNS, UNNAMED_SHAPES, make_background
from vlm_core.demo.phrases import Attributes, Description, false_descriptions, plural, true_descriptions
from vlm_core.demo.scenes import KNOWN_SHAPES, Scene, generate_scene
from vlm_core.demo.source import NEVER_TAUGHT, SceneSource, common_words, validation_samples

SEEDS = range(1_500_000, 1_500_040)


def digest(scene: Scene) -> str:
    masks = b"".join(np.packbits(item.mask).tobytes() for item in scene.objects)
    return hashlib.sha256(scene.image.tobytes() + masks + repr(scene.captions).encode()).hexdigest()


def thing(
    shape: str, colour: str = "red", x: float = 0.5, y: float = 0.5, *, size: str = "medium", pattern: str = "plain"
) -> Attributes:
    return Attributes(shape, colour, pattern, size, (x, y), named=shape in (*KNOWN_SHAPES, "star"))


def test_a_seed_gives_the_same_scene_again_and_another_seed_another() -> None:
    first, again, other = generate_scene(7), generate_scene(7), generate_scene(8)
    assert digest(first) == digest(again)
    assert [p for p, _ in first.phrases()] == [p for p, _ in again.phrases()]
    assert first.absent_phrases() == again.absent_phrases()
    assert digest(first) != digest(other)


@pytest.mark.parametrize("size", [96, (512, 256), (200, 300), (97, 131)])
def test_a_scene_looks_the_same_at_any_size(size: int | tuple[int, int]) -> None:
    scene = generate_scene(21, size=size)
    width, height = (size, size) if isinstance(size, int) else size
    assert scene.image.size == (width, height)
    twice = generate_scene(21, size=(2 * width, 2 * height))
    assert [(o.shape, o.colour) for o in scene.objects] == [(o.shape, o.colour) for o in twice.objects]
    small = np.asarray(twice.image.reduce(2), dtype=float)
    assert np.abs(small - np.asarray(scene.image, dtype=float)).mean() < 3.0
    for item, large in zip(scene.objects, twice.objects, strict=True):
        assert item.mask.shape == (height, width)
        assert large.mask.sum() / 4 == pytest.approx(item.mask.sum(), rel=0.06)


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_are_inside_apart_and_drawn_where_their_masks_are(seed: int) -> None:
    scene = generate_scene(seed)
    total = np.sum([item.mask for item in scene.objects], axis=0)
    assert total.max() == 1
    pixels = np.asarray(scene.image, dtype=float)
    for item, attributes in zip(scene.objects, scene.attributes, strict=True):
        x0, y0, x1, y1 = item.box
        assert item.mask[y0:y1, x0:x1].sum() == item.mask.sum() > 0
        assert (item.shape, item.colour, item.pattern) == (attributes.shape, attributes.colour, attributes.pattern)
        if item.pattern == "plain":
            # The median of the object's pixels is its colour, up to the colour's own variation.
            assert np.abs(np.median(pixels[item.mask], axis=0) - COLOURS[item.colour]).max() <= 16


def test_sizes_are_what_they_are_called() -> None:
    extents: dict[str, list[float]] = {"small": [], "medium": [], "large": []}
    for seed in SEEDS:
        scene = generate_scene(seed)
        for item in scene.objects:
            if item.shape == "circle":
                extents[item.size].append((item.box[2] - item.box[0]) / min(scene.size))
    assert max(extents["small"]) < min(extents["medium"])
    assert max(extents["medium"]) < min(extents["large"])


@pytest.mark.parametrize("seed", SEEDS)
def test_phrases_have_a_mask_and_absent_ones_are_true_of_nothing(seed: int) -> None:
    scene = generate_scene(seed)
    phrases = dict(scene.phrases())
    assert 2 <= len(phrases) <= 6
    assert all(mask.any() for mask in phrases.values())
    assert not set(phrases) & set(scene.absent_phrases())
    for shape in KNOWN_SHAPES:
        for word in (shape, plural(shape), f"the {shape}", f"a {shape}"):
            if word in phrases:
                assert (phrases[word] == scene.mask_of(shape)).all()
            if word in scene.absent_phrases():
                assert not scene.mask_of(shape).any()


def test_captions_name_two_objects_that_are_there() -> None:
    for seed in SEEDS:
        scene = generate_scene(seed)
        there = {f"{o.colour} {o.shape}" for o in scene.objects if o.named}
        for text in scene.captions:
            said = [
                f"{colour} {shape}"
                for colour in COLOURS
                for shape in KNOWN_SHAPES
                for pattern in ("", "striped ", "dotted ")
                if f"{colour} {pattern}{shape}" in text
            ]
            assert sum(text.split().count(shape) + text.split().count(f"{shape},") for shape in KNOWN_SHAPES) >= 2
            assert said
            assert set(said) <= there


# --- what phrases mean ---------------------------------------------------------------------------------------


def test_a_bare_name_means_all_objects_of_that_name() -> None:
    objects = [thing("circle", "red"), thing("circle", "blue"), thing("square", "red")]
    assert Description(shape="circle").matches(objects) == (0, 1)
    assert Description(colour="red").matches(objects) == (0, 2)
    assert Description(shape="circle", colour="red").matches(objects) == (0,)
    assert Description(shape="heart").matches(objects) == ()


def test_unnamed_shapes_are_objects_but_have_no_name() -> None:
    objects = [thing("blob", "red"), thing("circle", "red")]
    assert Description(colour="red").matches(objects) == (0, 1)
    assert Description(shape="blob").matches(objects) == ()


@pytest.mark.parametrize(
    ("xs", "meant"),
    [
        ((0.2, 0.8), (0,)),  # one on each side
        ((0.8, 0.2), (1,)),  # the other way round
        ((0.2,), (0,)),  # alone and on the left
        ((0.8,), ()),  # alone and on the right: there is no left circle
        ((0.5,), None),  # in the middle: unclear
        ((0.2, 0.3), None),  # both on the left: unclear
        ((0.7, 0.9), None),  # both on the right, one of them leftmost: unclear
        ((0.4, 0.5), None),  # hardly further left: unclear
    ],
)
def test_left_means_the_one_that_is_clearly_left(xs: tuple[float, ...], meant: tuple[int, ...] | None) -> None:
    objects = [thing("circle", x=x) for x in xs]
    assert Description(shape="circle", position="left").matches(objects) == meant
    mirrored = [thing("circle", x=1 - x) for x in xs]
    assert Description(shape="circle", position="right").matches(mirrored) == meant
    turned = [thing("circle", y=x) for x in xs]
    assert Description(shape="circle", position="top").matches(turned) == meant


def test_words_in_their_plainest_order() -> None:
    description = Description("square", "red", "striped", "large", "left")
    assert description.words() == "left large red striped square"
    assert Description(colour="red").words() == "red shape"


def test_paraphrases_keep_every_attribute() -> None:
    words = {
        "square": ("square",),
        "red": ("red",),
        "striped": ("striped", "with stripes"),
        "large": ("large", "big"),
        "left": ("left", "leftmost", "on the left"),
    }
    description = Description("square", "red", "striped", "large", "left")
    said = {description.words(np.random.default_rng(seed)) for seed in range(60)}
    assert len(said) > 20
    assert all(any(way in text for way in ways) for text in said for ways in words.values())


@given(st.integers(0, 2_000), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_true_and_false_descriptions_never_meet(seed: int, draw: int) -> None:
    scene = generate_scene(seed, draw_size=(32, 32))
    true = true_descriptions(scene.attributes)
    assert all(meant and description.matches(scene.attributes) == meant for description, meant in true)
    names = [description for description, _ in true]
    false = false_descriptions(scene.attributes, names, KNOWN_SHAPES, np.random.default_rng(draw), 6)
    assert len(set(false)) == len(false) > 0
    assert all(description.matches(scene.attributes) == () for description in false)


# --- arguments -----------------------------------------------------------------------------------------------


def test_shapes_can_be_chosen_and_required() -> None:
    for seed in range(20):
        scene = generate_scene(seed, shapes=("circle",), must_have=("star",), distractors=False)
        shapes = {item.shape for item in scene.objects}
        assert "star" in shapes <= {"circle", "star"}
        assert scene.mask_of("star").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ("circle", "dodecahedron")}, "unknown shapes .*dodecahedron"),
        ({"size": 16}, "cannot be drawn"),
        ({"size": (100, 300)}, "at most twice"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_scene(0, **arguments)  # type: ignore[arg-type]  # the cases are of different types
    with pytest.raises(ValueError, match="seed is -1"):
        generate_scene(-1)


def test_every_kind_of_thing_occurs() -> None:
    scenes = [generate_scene(seed, draw_size=(32, 32)) for seed in range(150)]
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in objects} == {*KNOWN_SHAPES, *UNNAMED_SHAPES}
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.pattern for item in objects} == set(PATTERNS)
    assert {make_background(np.random.default_rng(seed)).kind for seed in range(40)} == set(BACKGROUNDS)


# --- as training data ----------------------------------------------------------------------------------------


def test_what_the_demo_project_teaches_is_never_in_the_training() -> None:
    source = SceneSource(range(40), 32)
    assert "star" in NEVER_TAUGHT
    assert "star" in common_words()
    for index in range(len(source)):
        sample = source.sample(index, np.random.default_rng(index), 12)
        assert not any("star" in text.split() for text in (*sample.phrases, sample.text or ""))
        assert all(item.shape not in NEVER_TAUGHT for item in generate_scene(index).objects)


def test_common_words_say_nothing_about_scenes() -> None:
    words = common_words()
    assert len(words) == len(set(words)) > 2000
    said = {word for seed in range(60) for text in generate_scene(seed).captions for word in text.split()}
    said |= {word for seed in range(60) for phrase, _ in generate_scene(seed).phrases() for word in phrase.split()}
    assert not said & set(words)


def test_samples_have_true_masks_and_empty_ones_in_fair_shares() -> None:
    source = SceneSource(range(60), 48)
    present = 0
    for index in range(len(source)):
        sample = source.sample(index, np.random.default_rng(index), 6)
        assert sample.masks.shape == (6, 48, 48)
        assert 0 <= sample.masks.min() <= sample.masks.max() <= 1
        present += sum(bool(mask.any()) for mask in sample.masks)
    assert 0.48 <= present / (6 * len(source)) <= 0.6


def test_a_sample_is_what_the_full_scene_says() -> None:
    source = SceneSource([5], 96)
    scene = generate_scene(5)
    sample = source.sample(0, np.random.default_rng(0), 6)
    squashed = np.asarray(scene.image.resize((96, 96), 2), dtype=float)
    assert np.abs(np.asarray(sample.image, dtype=float) - squashed).mean() < 3
    by_words = {
        description.words(np.random.default_rng(s)): meant
        for description, meant in scene.true_descriptions
        for s in range(40)
    }
    checked = 0
    for phrase, mask in zip(sample.phrases, sample.masks, strict=True):
        if phrase in by_words:
            area = scene.union(by_words[phrase]).mean()
            assert mask.mean() == pytest.approx(area, abs=0.004)
            checked += 1
    assert checked


def test_bare_names_are_asked_for_present_or_not() -> None:
    source = SceneSource(range(20), 48)
    for index in range(len(source)):
        sample = source.of_lesson("names").sample(index, np.random.default_rng(index), 5)
        assert sorted(sample.phrases) == sorted(KNOWN_SHAPES)
        scene = generate_scene(index)
        there = {name for name, mask in zip(sample.phrases, sample.masks, strict=True) if mask.any()}
        assert there == {item.shape for item in scene.objects if item.named}


def test_validation_samples_are_at_the_scene_s_own_size() -> None:
    samples = list(validation_samples(range(1_000_000, 1_000_004)))
    for sample in samples:
        assert sample.masks.shape == (len(sample.phrases), sample.image.height, sample.image.width)
        assert any(mask.any() for mask in sample.masks)
        assert not all(mask.any() for mask in sample.masks)


def test_small_things_have_the_diameter_that_was_asked_for() -> None:
    scene = generate_scene(5, size=1000, diameter=0.03)
    assert scene.size == (1000, 1000)
    for item in scene.objects:
        # figures fill their circle to different parts, and turned ones reach out of it
        assert 15 <= max(item.box[2] - item.box[0], item.box[3] - item.box[1]) <= 45
    with pytest.raises(ValueError, match=r"diameter 0\.9"):
        generate_scene(5, diameter=0.9)

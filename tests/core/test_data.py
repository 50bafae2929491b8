"""The JSONL layouts: what is read, and what each mistake is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.crops import object_crop
from vlm_core.data import JsonlPairs, JsonlPhrases, batch_indices, open_mask, read_pairs, read_phrases
from vlm_core.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    left = np.zeros((6, 8), dtype=np.uint8)
    left[:, :4] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(255 - left).save(tmp_path / "right.png")
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    return tmp_path


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_pairs_are_read_in_order_with_paths_relative_to_the_file(folder: Path) -> None:
    rows = read_pairs(write(folder, {"image": "a.png", "text": " red "}, "", {"image": "b.png", "text": "blue"}))
    assert [(row.image, row.text) for row in rows] == [
        ((folder / "a.png").resolve(), "red"),
        ((folder / "b.png").resolve(), "blue"),
    ]


def test_phrases_are_read_and_null_means_absent(folder: Path) -> None:
    rows = read_phrases(
        write(
            folder,
            {"image": "a.png", "phrase": "left", "mask": "left.png", "text": "a scene"},
            {"image": "a.png", "phrase": "dog", "mask": None},
        )
    )
    assert rows[0].mask == (folder / "left.png").resolve()
    assert rows[0].text == "a scene"
    assert rows[1].mask is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2: not JSON"),  # a broken line
        ([1], "line 2: a list; expected an object"),  # another kind of JSON
        ({"image": "a.png", "phrase": "x"}, "line 2: mask missing"),
        ({"image": "a.png", "phrase": "x", "mask": None, "label": 1}, "line 2: unknown key 'label'"),
        ({"image": "nowhere.png", "phrase": "x", "mask": None}, "line 2: image 'nowhere.png' is not a file"),
        ({"image": 7, "phrase": "x", "mask": None}, "line 2: image is 7; give the path"),
        ({"image": "a.png", "phrase": "  ", "mask": None}, "line 2: phrase is '  '; give a text"),
        ({"image": "a.png", "phrase": "x", "mask": "nope.png"}, "line 2: mask 'nope.png' is not a file"),
    ],
)
def test_a_wrong_line_is_named_with_its_value(folder: Path, row: object, message: str) -> None:
    path = write(folder, {"image": "a.png", "phrase": "left", "mask": "left.png"}, row)
    with pytest.raises(DataError) as caught:
        read_phrases(path)
    assert message in str(caught.value)


def test_a_missing_and_an_empty_file_say_what_is_expected(folder: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_pairs(folder / "none.jsonl")
    with pytest.raises(DataError, match=r'holds no line: expected lines such as \{"image"'):
        read_pairs(write(folder, ""))


def test_an_image_with_several_texts_is_one_item(folder: Path) -> None:
    source = JsonlPairs(
        write(
            folder,
            {"image": "a.png", "text": "red"},
            {"image": "b.png", "text": "blue"},
            {"image": "a.png", "text": "ruby"},
        )
    )
    assert len(source) == 2
    assert {source.text(0, np.random.default_rng(seed)) for seed in range(20)} == {"red", "ruby"}
    assert sorted(source.vocabulary()) == ["blue", "red", "ruby"]
    assert source.image(1).getpixel((0, 0)) == (0, 0, 255)


def phrases(folder: Path, *, absent: float) -> JsonlPhrases:
    path = write(
        folder,
        {"image": "a.png", "phrase": "left", "mask": "left.png"},
        {"image": "a.png", "phrase": "right", "mask": "right.png"},
        {"image": "b.png", "phrase": "dog", "mask": None, "text": "nothing"},
    )
    return JsonlPhrases(path, absent=absent)


def test_a_sample_has_as_many_phrases_as_asked_and_different_ones_first(folder: Path) -> None:
    source = phrases(folder, absent=0.0)
    sample = source.sample(0, np.random.default_rng(0), 4)
    assert sorted(sample.phrases[:2]) == sorted(sample.phrases[2:]) == ["left", "right"]
    for phrase, mask in zip(sample.phrases, sample.masks, strict=True):
        columns = mask.any(axis=0)
        assert columns.tolist() == ([True] * 4 + [False] * 4 if phrase == "left" else [False] * 4 + [True] * 4)
    other = source.sample(1, np.random.default_rng(0), 1)
    assert other.phrases == ("dog",)
    assert not other.masks.any()
    assert other.text == "nothing"


def test_exchanged_phrases_come_from_other_images_and_have_no_mask(folder: Path) -> None:
    source = phrases(folder, absent=1.0)
    seen = set()
    for seed in range(20):
        sample = source.sample(0, np.random.default_rng(seed), 2)
        for phrase, mask in zip(sample.phrases, sample.masks, strict=True):
            assert not mask.any()
            seen.add(phrase)
    assert seen == {"dog"}


def test_a_phrase_whose_words_are_all_in_one_of_the_image_is_not_exchanged_for(folder: Path) -> None:
    path = write(
        folder,
        {"image": "a.png", "phrase": "Black dog", "mask": "left.png"},
        {"image": "b.png", "phrase": "dog", "mask": "left.png"},
        {"image": "c.png", "phrase": "dog black", "mask": "left.png"},
        {"image": "c.png", "phrase": "black dog on grass", "mask": "right.png"},
    )
    source = JsonlPhrases(path, absent=1.0)
    drawn = {
        index: {source.sample(index, np.random.default_rng(seed), 1).phrases[0] for seed in range(40)}
        for index in range(3)
    }
    assert drawn[0] == {"black dog on grass"}
    assert drawn[1] == {"Black dog", "dog black", "black dog on grass"}  # it may be a brown one: nobody has looked
    assert drawn[2] == {"dog black", "black dog on grass"}  # nothing else there is: they stay
    assert source.sample(2, np.random.default_rng(0), 1).masks.any()


def test_every_sample_gives_the_file_as_it_is(folder: Path) -> None:
    samples = list(phrases(folder, absent=1.0).every_sample())
    assert [sample.phrases for sample in samples] == [("left", "right"), ("dog",)]
    assert [bool(mask.any()) for sample in samples for mask in sample.masks] == [True, True, False]


def test_a_mask_of_another_size_is_an_error_that_names_both(folder: Path) -> None:
    path = write(folder, {"image": "a.png", "phrase": "x", "mask": "small.png"})
    with pytest.raises(DataError, match="4 x 4 px but its image 8 x 6 px"):
        next(JsonlPhrases(path).every_sample())


def test_a_rotated_photograph_is_turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "turned.jpg", exif=exif)
    assert JsonlPairs(write(folder, {"image": "turned.jpg", "text": "x"})).image(0).size == (6, 8)


def test_a_file_that_is_no_image_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    source = JsonlPairs(write(folder, {"image": "text.png", "text": "x"}))
    with pytest.raises(DataError, match=r"text\.png cannot be read"):
        source.image(0)


def test_batches_use_each_item_once_an_epoch_and_depend_on_the_seed_alone() -> None:
    epoch = [index for step in range(3) for index in batch_indices(10, 3, step, seed=5)]
    assert len(set(epoch)) == 9
    assert batch_indices(10, 3, 4, seed=5) == batch_indices(10, 3, 4, seed=5)
    assert [batch_indices(10, 3, s, seed=5) for s in range(3)] != [batch_indices(10, 3, s, seed=5) for s in range(3, 6)]
    assert batch_indices(10, 3, 0, seed=5) != batch_indices(10, 3, 0, seed=6)


def test_texts_with_foreign_line_separators_and_a_byte_order_mark(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    text = "one\u2028two\u0085three"
    row = json.dumps({"image": "a.png", "text": text}, ensure_ascii=False)
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n\r\n")
    assert [pair.text for pair in read_pairs(tmp_path / "pairs.jsonl")] == [text]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ".", ""])
def test_a_path_that_can_be_no_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": name, "text": "x"}))
    with pytest.raises(DataError, match="line 1"):
        read_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("level", [1, 127])
def test_a_mask_of_class_numbers_is_not_taken_for_an_empty_one(tmp_path: Path, level: int) -> None:
    Image.new("L", (4, 3), level).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=f"brightest is {level}"):
        open_mask(tmp_path / "mask.png", (4, 3))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_any_mode(tmp_path: Path, mode: str) -> None:
    white = np.zeros((3, 4), dtype=bool)
    white[1, 2] = True
    if mode == "I;16":
        mask = Image.fromarray(np.where(white, 65535, 0).astype(np.uint16))
    else:
        mask = Image.fromarray(white).convert("L").convert(mode)
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(open_mask(tmp_path / "mask.png", (4, 3)), white)


def objects(folder: Path) -> Path:
    """Three pictures of 40 x 20 px with a horse each, at another place; one has a dog, too."""
    rows: list[object] = []
    for number in range(3):
        level = 60 * number + 60
        Image.new("RGB", (40, 20), (level, level, level)).save(folder / f"o{number}.png")
        mask = np.zeros((20, 40), dtype=np.uint8)
        mask[5:15, 10 * number : 10 * number + 15] = 255
        Image.fromarray(mask).save(folder / f"o{number}-horse.png")
        rows.append(
            {"image": f"o{number}.png", "phrase": "Horse" if number else "horse", "mask": f"o{number}-horse.png"}
        )
    rows.append({"image": "o0.png", "phrase": "dog", "mask": "o0-horse.png"})
    rows.append({"image": "o1.png", "phrase": "cat", "mask": None})
    return write(folder, *rows)


def test_exemplars_show_the_same_phrase_in_another_image(folder: Path) -> None:
    source = JsonlPhrases(objects(folder), absent=0.0, exemplars=True)
    shown: set[int] = set()
    for draw in range(20):
        sample = source.sample(0, np.random.default_rng(draw), 2)
        assert len(sample.exemplars) == 2
        for phrase, exemplar in zip(sample.phrases, sample.exemplars, strict=True):
            assert (exemplar is None) == (phrase == "dog")  # no other image has a dog
            if exemplar is not None:
                image, mask = exemplar
                level = image.getpixel((0, 0))[0]
                assert mask.dtype == np.bool_
                assert np.array_equal(np.flatnonzero(mask.any(0))[[0, -1]], [level // 6 - 10, level // 6 + 4])
                shown.add(level)
    assert shown == {120, 180}
    assert JsonlPhrases(objects(folder)).sample(0, np.random.default_rng(0), 2).exemplars == ()
    assert source.sample(1, np.random.default_rng(0), 4).exemplars.count(None) == 2  # a cat is nowhere


def test_crops_are_squares_that_show_the_first_phrase(folder: Path) -> None:
    source = JsonlPhrases(objects(folder), absent=0.0, crop=True)
    lefts = set()
    for draw in range(20):
        sample = source.sample(2, np.random.default_rng(draw), 2)
        assert sample.image.size == (20, 20)
        assert sample.masks.shape == (2, 20, 20)
        assert sample.masks[0].sum() > 0.05 * 40 * 20
        lefts.add(int(sample.masks[0].any(0).argmax()))
    assert len(lefts) > 3


def test_what_is_drawn_for_exemplars_and_crops_depends_on_the_generator_alone(folder: Path) -> None:
    source = JsonlPhrases(objects(folder), absent=0.5, crop=True, exemplars=True)
    a, b = (source.sample(0, np.random.default_rng(3), 3) for _ in range(2))
    assert a.phrases == b.phrases
    assert np.array_equal(a.masks, b.masks)
    assert [e is None for e in a.exemplars] == [e is None for e in b.exemplars]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_a_crop_is_the_largest_square_and_shows_as_much_as_it_must(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.02
    x0, y0, x1, y1 = object_crop(mask, rng)
    assert (x1 - x0, y1 - y0) == (min(height, width),) * 2
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def test_a_small_object_is_in_the_crop_where_any_of_the_places_shows_it() -> None:
    mask = np.zeros((20, 200), dtype=bool)
    mask[8:12, 90:94] = True  # too small for the wanted share: the place that shows most is taken
    for seed in range(20):
        x0, _, x1, _ = object_crop(mask, np.random.default_rng(seed))
        assert x0 < 94
        assert x1 > 90
    assert object_crop(mask.T, np.random.default_rng(0))[1:4:2] == object_crop(mask, np.random.default_rng(0))[0:3:2]

"""What the converters share: large JSON in pieces, parts by image, files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.convert import json_records
from vlm_core.convert.dataset import DatasetWriter, LeftOutError, SourceImage, clean_phrase, find_image
from vlm_core.convert.json_records import read_record, read_records
from vlm_core.data import JsonlPhrases
from vlm_core.errors import DataError, InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    document=st.dictionaries(st.text(max_size=5), st.lists(VALUES, max_size=5) | VALUES, max_size=4),
    chunk=st.integers(1, 40),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_records_are_the_elements_of_the_lists_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], chunk: int, escaped: bool, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "document.json"
    text = json.dumps(document, ensure_ascii=escaped, indent=indent)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_CHUNK_BYTES", chunk)
        records = list(read_records(path))
    expected = [(key, item) for key, value in document.items() if isinstance(value, list) for item in value]
    assert [(record.key, record.value) for record in records] == expected
    with path.open("rb") as file:
        assert [read_record(file, record.start, record.end) for record in records] == [item for _, item in expected]


def test_a_document_that_is_a_list_has_records_without_a_key(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(b'\xef\xbb\xbf [1, {"a": "\xc3\xa4"} ]\n')
    assert [(record.key, record.value) for record in read_records(path)] == [("", 1), ("", {"a": "ä"})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": [1, 2', "at byte 11"),  # cut off
        (b'{"a": [1 2]}', "at byte 9 .one of , . is expected"),
        (b"[1] x", "something follows"),
        (b'"text"', "no JSON list or object"),
        (b"", "no JSON list or object"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b"{a: 1}", "a name is expected"),
    ],
)
def test_what_is_not_json_is_named_with_its_place(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=problem):
        list(read_records(path))


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none\.json"):
        list(read_records(tmp_path / "none.json"))


@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True),
    more=st.text(min_size=1),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_an_image_stays_in_its_part_when_others_are_added(names: list[str], more: str, share: float, seed: int) -> None:
    before, after = (DatasetWriter(Path("unused"), val_share=share, seed=seed) for _ in range(2))
    parts = {name: before.part_of(name) for name in names}
    after.part_of(more)
    assert {name: after.part_of(name) for name in reversed(names)} == parts


def test_the_share_of_the_validation_part_is_what_was_asked() -> None:
    writer = DatasetWriter(Path("unused"), val_share=0.2, seed=3)
    share = sum(writer.part_of(f"{i}.jpg") == "val" for i in range(4000)) / 4000
    assert share == pytest.approx(0.2, abs=0.03)  # five deviations of the binomial
    assert DatasetWriter(Path("unused")).part_of("a.jpg") == ""


@given(mask=st.integers(1, 2**15 - 1), width=st.sampled_from([1, 3, 5, 15]))
def test_a_mask_is_read_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, mask: int, width: int) -> None:
    folder = tmp_path_factory.mktemp("masks")
    pixels = np.array([mask >> i & 1 for i in range(15)], dtype=bool).reshape(-1, width)
    Image.new("RGB", (width, 15 // width)).save(folder / "a.png")
    image = find_image(folder, "a.png", pixels.shape)
    with DatasetWriter(folder / "out") as writer:
        writer.phrase("", image, "it", writer.save_mask("1", pixels))
    with Image.open(folder / "out/masks/1.png") as written:
        assert written.mode == "1"
    (sample,) = JsonlPhrases(folder / "out/phrases.jsonl").every_sample()
    assert sample.phrases == ("it",)
    assert (sample.masks[0] == pixels).all()


def _interrupted(out: Path, image: SourceImage) -> None:
    with DatasetWriter(out) as writer:
        writer.phrase("", image, "second", None)
        raise KeyboardInterrupt


def test_what_is_given_up_leaves_the_last_conversion_as_it_was(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    image = find_image(tmp_path, "a.png")
    out = tmp_path / "out"
    with DatasetWriter(out) as writer:
        writer.phrase("", image, "first", None)
    before = (out / "phrases.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(out, image)
    assert (out / "phrases.jsonl").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["phrases.jsonl"]
    with pytest.raises(InputError, match=r"given up: .*No space"), DatasetWriter(out) as writer:
        raise OSError(28, "No space left on device")


def test_copied_images_lie_beside_the_lines(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    Image.new("RGB", (2, 2), "red").save(tmp_path / "in/deep/a.png")
    image = find_image(tmp_path / "in", "deep/a.png")
    with DatasetWriter(tmp_path / "out", copy=True) as writer:
        writer.pair("train", image, "red")
        writer.phrase("train", image, "dog", None)
    (tmp_path / "in/deep/a.png").unlink()
    (line,) = (tmp_path / "out/pairs-train.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "images/deep/a.png", "text": "red"}
    (sample,) = JsonlPhrases(tmp_path / "out/phrases-train.jsonl").every_sample()
    assert sample.image.getpixel((0, 0)) == (255, 0, 0)


def test_the_limit_counts_images_of_each_file(tmp_path: Path) -> None:
    images = [SourceImage(f"{i}.png", tmp_path / f"{i}.png", (1, 1)) for i in range(3)]
    with DatasetWriter(tmp_path / "out", limit=2) as writer:
        for image in (*images, images[0]):
            if writer.has_room("phrases", "", image.name):
                writer.phrase("", image, "x", None)
        assert writer.has_room("pairs", "", "2.png")
    assert writer.summary.files == {"phrases.jsonl": {"images": 2, "lines": 3, "absent": 3}}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.png", "out of the folder"),
        ("/a.png", "out of the folder"),
        ("b.png", "not in the folder"),
        ("text.png", "cannot be read"),
        ("", "no file name"),
        (7, "no file name"),
        ("small.png", "another size"),
    ],
)
def test_images_that_cannot_be_used_have_a_reason(tmp_path: Path, name: object, reason: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (3, 2)).save(tmp_path / "small.png")
    with pytest.raises(LeftOutError, match=reason):
        find_image(tmp_path, name, (3, 2))  # 3 high, 2 wide


def test_phrases_lose_needless_space_and_blank_ones_are_refused() -> None:
    assert clean_phrase(" black\n  dog ") == "black dog"
    for blank in ("  ", None, 3, "half \ud800"):
        with pytest.raises(LeftOutError):
            clean_phrase(blank)


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"val_share 1\.0"):
        DatasetWriter(tmp_path, val_share=1.0)
    with pytest.raises(InputError, match="limit 0"):
        DatasetWriter(tmp_path, limit=0)

"""Pairs in tar shards: every order gives the same bytes, and what is broken costs itself alone."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_core.data import JsonlPairs
from vlm_core.errors import DataError, UnreadableSampleError
from vlm_core.pair_files import open_pairs, shard_paths
from vlm_core.shards import ShardPairs


def picture(level: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (level, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        members += [(f"{number:06d}.png", picture(number)), (f"{number:06d}.txt", f"level {number}\n".encode())]
    return members


def levels(source: ShardPairs) -> list[int]:
    return [int(np.asarray(source.image(index))[0, 0, 0]) for index in range(len(source))]


def header_of(path: Path, name: str) -> int:
    """Where a member's header begins, byte."""
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def reasons(source: ShardPairs) -> dict[str, str]:
    return {member.member: member.reason for member in source.broken}


def test_samples_of_several_shards_in_any_order(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"pairs-{number:03d}.tar", pairs(10 * number, 4))
    source = open_pairs(tmp_path)
    assert isinstance(source, ShardPairs)
    expected = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert levels(source) == expected
    for index in (11, 0, 7, 7, 3):
        assert np.asarray(source.image(index))[0, 0, 0] == expected[index]
        assert source.texts_of(index) == (f"level {expected[index]}",)
        assert source.text(index, np.random.default_rng(0)) == f"level {expected[index]}"
    assert list(source.vocabulary()) == [f"level {level}" for level in expected]
    assert (source.broken, source.summary()) == ([], "")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_caption_and_long_names(tmp_path: Path, format: int) -> None:
    deep = "/".join(["folder" * 8] * 2)  # longer than 99 bytes with its name: GNU and PAX write a header before it
    shard = write_shard(
        tmp_path / "a.tar",
        [
            ("a.b/1.JPG", picture(1, "JPEG")),  # the name ends at the first dot of the file's name
            ("a.b/1.txt", b"one"),
            ("2.json", b'{"captions": ["two", "a pair"], "url": "x"}'),
            ("2.png", picture(2)),
            ("3.png", picture(3)),
            ("3.txt", "drei: größer".encode()),
            ("3.json", b'{"caption": "three", "width": 8}'),
            (f"{deep}/0000000004.png", picture(4)),
            (f"{deep}/0000000004.json", b'["four"]'),
            ("5.png", picture(5)),
            ("5.json", b'"five"'),
            ("5.seg.png", picture(99)),  # another extension: not its image
            ("README", b"not a sample"),
        ],
        format,
    )
    source = ShardPairs([shard])
    assert [tuple(source.texts_of(index)) for index in range(len(source))] == [
        ("one",),
        ("two", "a pair"),
        ("drei: größer", "three"),
        ("four",),
        ("five",),
    ]
    assert levels(source)[1:] == [2, 3, 4, 5]
    assert source.broken == []


def test_what_is_broken_is_left_out_and_named(tmp_path: Path) -> None:
    cut = picture(7)[:40]
    shard = write_shard(
        tmp_path / "a.tar",
        [
            *pairs(0, 1),
            ("no-text.png", picture(1)),
            ("no-image.txt", b"nothing to see"),
            ("bytes.png", picture(2)),
            ("bytes.txt", b"\xff\xfe\xfa"),
            ("blank.png", picture(3)),
            ("blank.txt", b" \n"),
            ("json.png", picture(4)),
            ("json.json", b'{"caption": '),
            ("number.png", picture(5)),
            ("number.json", b'{"caption": 5}'),
            ("half.png", picture(6)),  # its JSON is broken, its text is not
            ("half.txt", b"still of use"),
            ("half.json", b"{"),
            ("twice.png", picture(8)),
            ("twice.jpg", picture(9)),
            ("twice.txt", b"two images"),
            ("cut.png", cut),
            ("cut.txt", b"the image ends early"),
        ],
    )
    source = ShardPairs([shard])
    assert [source.texts_of(i)[0] for i in range(len(source))] == [
        "level 0",
        "still of use",
        "two images",
        "the image ends early",
    ]
    assert set(reasons(source)) == {
        "no-text", "no-image", "bytes.txt", "blank.txt", "json.json", "number.json", "half.json", "twice.jpg",
    }  # fmt: skip
    assert reasons(source)["no-image"] == "no image"
    assert "not UTF-8" in reasons(source)["bytes.txt"]
    assert source.summary().startswith("Left out as broken: 8: a.tar: bytes.txt: not UTF-8 text")
    assert source.summary().endswith("; and 3 more")
    for _ in range(2):  # told once, however often it is asked for
        with pytest.raises(UnreadableSampleError, match=r"cut\.png in .*cannot be read as an image"):
            source.image(3)
    assert len(source.broken) == 9
    assert source.broken[-1].member == "cut.png"


def test_a_shard_cut_off_gives_what_stands_before(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar", pairs(0, 4))
    at = header_of(whole, "000002.png")
    for size, told in [
        (at + 512 + 20, {"000002.png": "the shard ends within it"}),
        (at + 100, {f"from byte {at}": "no header of a member"}),
    ]:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole.read_bytes()[:size])
        source = ShardPairs([cut, whole])
        assert levels(source) == [0, 1, 0, 1, 2, 3]
        assert reasons(source) == told


def test_a_damaged_header_costs_its_member(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", pairs(0, 4))
    at = header_of(shard, "000001.png")
    content = bytearray(shard.read_bytes())
    content[at : at + 512] = b"\x01" * 512
    shard.write_bytes(content)
    source = ShardPairs([shard])
    assert levels(source) == [0, 2, 3]
    assert reasons(source) == {f"from byte {at}": "no header of a member", "000001": "no image"}


def test_what_is_no_shard_is_named_and_others_are_read(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "b.tar", pairs(0, 2))
    (tmp_path / "a.tar").write_bytes(picture(0, "PNG") * 40)
    (tmp_path / "c.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "d.tar").mkdir()
    (tmp_path / "e.tar").write_bytes(b"")
    source = ShardPairs(sorted(tmp_path.glob("*.tar")))
    assert levels(source) == [0, 1]
    told = {member.shard.name: member.reason for member in source.broken}
    assert set(told) == {"a.tar", "c.tar", "d.tar", "e.tar"}
    assert "gunzip" in told["c.tar"]
    with pytest.raises(DataError, match=r"no pair of an image and a text in 2 shards.*Left out as broken: 2"):
        ShardPairs([tmp_path / "a.tar", tmp_path / "c.tar"])
    with pytest.raises(DataError, match="in 1 shards"):
        ShardPairs([tmp_path / "e.tar"])


def test_a_shard_that_vanishes_costs_its_images(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", pairs(0, 1))
    source = ShardPairs([shard])
    shard.unlink()
    with pytest.raises(UnreadableSampleError):
        source.image(0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("p-*.tar", ["p-000.tar", "p-001.tar", "p-002.tar", "p-010.tar"]),
        ("p-00[12].tar", ["p-001.tar", "p-002.tar"]),
        ("p-{000..002}.tar", ["p-000.tar", "p-001.tar", "p-002.tar"]),
        ("p-{002..000}.tar", ["p-002.tar", "p-001.tar", "p-000.tar"]),
        ("p-0{01,10}.tar", ["p-001.tar", "p-010.tar"]),
        ("p-0{0,1}{0..0}.tar", ["p-000.tar", "p-010.tar"]),
        ("p-{001,00*}.tar", ["p-001.tar", "p-000.tar", "p-002.tar"]),  # each file once
        ("p-001.tar", ["p-001.tar"]),
    ],
)
def test_names_of_several_shards(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("p-000.tar", "p-001.tar", "p-002.tar", "p-010.tar", "q.tar"):
        write_shard(tmp_path / name, pairs(0, 1))
    assert [path.name for path in shard_paths(str(tmp_path / pattern))] == names
    assert len(open_pairs(tmp_path / pattern)) == len(names)


@pytest.mark.parametrize("pattern", ["p-{000..003}.tar", "none-*.tar", "gone.tar", "{0..99999999}.tar", "{a,b.tar"])
def test_shards_that_are_not_there(tmp_path: Path, pattern: str) -> None:
    for number in range(3):
        write_shard(tmp_path / f"p-{number:03d}.tar", pairs(0, 1))
    with pytest.raises(DataError, match=r"no shard|more than 1000000 shards"):
        open_pairs(tmp_path / pattern)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.tar file in the directory"):
        open_pairs(tmp_path / "empty")


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_is_read_as_the_jsonl_of_its_rows(tmp_path: Path, suffix: str, separator: str) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    lines = [("0.png", '"one, with a comma"'), ("1.png", "two"), ("0.png", "again")]
    table = tmp_path / f"pairs{suffix}"
    rows = [("image", "text", "width"), *((*line, "8") for line in lines)]
    table.write_text("".join(separator.join(row) + "\n" for row in rows), "utf-8-sig")
    jsonl = tmp_path / "pairs.jsonl"
    jsonl.write_text("".join(json.dumps({"image": i, "text": t.strip('"')}) + "\n" for i, t in lines))
    read, expected = open_pairs(table), open_pairs(jsonl)
    assert isinstance(expected, JsonlPairs)
    assert not isinstance(read, ShardPairs)
    assert (read.images, read.texts) == (expected.images, expected.texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n0.png,a\n", "has no column text"),
        ("image,text\n0.png,\n", "line 2: text is ''"),
        ("image,text\n0.png\n", "line 2: text is None"),
        ("image,text\n0.png,a\n9.png,b\n", "line 3: image '9.png' is not a file"),
        ("image,text\n", "no line below its header"),
        ("", "has no column image and text"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        open_pairs(tmp_path / "pairs.csv")
    with pytest.raises(DataError, match="there is no file"):
        open_pairs(tmp_path / "other.csv")

"""Which images are held out: once, for ever, and with every label."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.versions import VersionCorruptError
from training_jobs.split import assign, choose_held_out, held_out_target

STAR, CIRCLE = frozenset({"star"}), frozenset({"circle"})


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def images(numbers: range, labels: frozenset[str] = STAR) -> list[tuple[str, frozenset[str]]]:
    return [(sha(number), labels) for number in numbers]


def held(path: Path, numbers: range) -> set[str]:
    split = assign(path, images(numbers))
    return {sha256 for sha256 in split.parts if split[sha256] == "held out"}


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (2, 0), (3, 1), (8, 2), (23, 7), (24, 8), (32, 8), (36, 9), (400, 100)]
)
def test_how_many(count: int, expected: int) -> None:
    assert held_out_target(count) == expected


def test_an_image_keeps_its_part(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    first = assign(path, images(range(12))).parts
    assert sum(part == "held out" for part in first.values()) == 4
    second = assign(path, images(range(60))).parts
    assert {sha256: second[sha256] for sha256 in first} == dict(first)
    assert sum(part == "held out" for part in second.values()) == 15
    # Images that are gone keep theirs too, and come back to it.
    third = assign(path, images(range(50, 70))).parts
    assert {sha256: third[sha256] for sha256 in second} == dict(second)


def test_one_image_at_a_time_comes_to_the_same_share(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for number in range(40):
        assign(path, images(range(number, number + 1)))
    assert len(held(path, range(40))) == 10


def test_a_rare_label_gets_its_share(tmp_path: Path) -> None:
    rare, common = images(range(6), frozenset({"cross", "star"})), images(range(6, 60))
    split = assign(tmp_path / "split.json", rare + common)
    out = [sha256 for sha256, _ in rare if split[sha256] == "held out"]
    assert len(out) in (1, 2)
    assert sum(part == "held out" for part in split.parts.values()) == 15


def test_the_same_picture_twice_is_one_image(tmp_path: Path) -> None:
    split = assign(tmp_path / "split.json", [*images(range(8)), (sha(3), CIRCLE)])
    assert len(split.parts) == 8


def test_the_choice_does_not_depend_on_the_order() -> None:
    some = images(range(10)) + images(range(10, 20), CIRCLE)
    assert choose_held_out(some, [], 5) == choose_held_out(some[::-1], [], 5)


@given(st.lists(st.frozensets(st.sampled_from("abc"), max_size=3), max_size=30), st.data())
def test_the_choice_is_of_the_asked_size(labels: list[frozenset[str]], data: st.DataObject) -> None:
    new = [(sha(number), present) for number, present in enumerate(labels)]
    count = data.draw(st.integers(0, len(new)))
    chosen = choose_held_out(new, [], count)
    assert len(chosen) == count
    assert chosen <= {sha256 for sha256, _ in new}


def test_writers_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    results: list[dict[str, str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(dict(assign(path, images(range(30))).parts))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"schema_version": 2, "images": {}}', '{"schema_version": 1, "images": {"a": "?"}}']
)
def test_a_damaged_split_is_never_made_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(VersionCorruptError, match=r"split\.json"):
        assign(path, images(range(10)))
    assert path.read_text() == content

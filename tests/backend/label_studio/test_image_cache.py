from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from backend.disk_cache import DiskCache
from backend.label_studio.images.cache import cache_key


def key(number: int) -> str:
    return cache_key(f"http://host/{number}.png")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def use(folder: Path, number: int, moment: float) -> None:
    path = folder / key(number)[:2] / key(number)
    os.utime(path, (moment, path.stat().st_mtime))


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 1000)
    assert cache.get(key(1)) is None
    cache.put(key(1), b"abc")
    assert cache.get(key(1)) == b"abc"
    assert DiskCache(tmp_path / "c", 1000).get(key(1)) == b"abc"
    cache.drop(key(1))
    cache.drop(key(1))
    assert cache.get(key(1)) is None


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    for number in range(4):
        cache.put(key(number), bytes(240))
        use(tmp_path, number, 1000.0 + number)
    assert cache.get(key(0)) is not None  # used now: the oldest is 1
    cache.put(key(4), bytes(240))
    assert [number for number in range(5) if cache.get(key(number)) is not None] == [0, 3, 4]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 900


def test_the_bound_counts_what_other_processes_wrote(tmp_path: Path) -> None:
    first, second = DiskCache(tmp_path, 1000), DiskCache(tmp_path, 1000)
    for number in range(60):
        (first if number % 2 else second).put(key(number), bytes(100))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 2 * 1000
    for number in range(60, 130):
        first.put(key(number), bytes(10))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1000


def test_nothing_larger_than_the_room_is_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 10)
    cache.put(key(1), bytes(11))
    assert files(tmp_path) == []
    none = DiskCache(tmp_path / "c", 0)
    none.put(key(1), b"a")
    assert none.get(key(1)) is None


def test_old_entries_do_not_count(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    cache.put(key(1), b"abc")
    (path,) = files(tmp_path)
    os.utime(path, (1.0, 1.0))
    assert cache.get(key(1), max_age_s=60) is None
    assert cache.get(key(1)) == b"abc"
    # being used makes nothing younger
    assert cache.get(key(1), max_age_s=60) is None


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    old, new = folder / "x.part", folder / "y.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    DiskCache(tmp_path, 1000).put(key(1), b"abc")
    assert not old.exists()
    assert new.exists()


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file" / "c", 1000)
    with caplog.at_level(logging.WARNING):
        cache.put(key(1), b"abc")
        assert cache.get(key(1)) is None
    assert "cannot be" in caplog.text
    assert str(tmp_path) not in caplog.text


@pytest.mark.parametrize("at", range(0, 24, 3))
def test_a_file_with_one_wrong_bit_is_none(tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path / "c", 1000)
    cache.put(key(1), bytes(range(16)))
    (path,) = files(tmp_path)
    sealed = bytearray(path.read_bytes())
    assert len(sealed) == 24
    sealed[at] ^= 4
    path.write_bytes(sealed)
    with caplog.at_level(logging.WARNING):
        assert cache.get(key(1)) is None
    assert not path.exists()
    # In the first bytes it looks like a file of another release, of which nobody need be told.
    assert ("is damaged" in caplog.text) == (at >= 4)


@pytest.mark.parametrize("length", [0, 3, 7, 8, 23])
def test_a_file_that_was_cut_short_is_none(tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path / "c", 1000)
    cache.put(key(1), bytes(range(16)))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        assert cache.get(key(1)) is None
    assert "is damaged" in caplog.text
    cache.put(key(1), b"")
    assert cache.get(key(1)) == b""


def test_a_file_of_a_release_without_checksums_is_none_and_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path / "c", 1000)
    cache.put(key(1), b"abc")
    (path,) = files(tmp_path)
    path.write_bytes(b"an image file, as it is")
    with caplog.at_level(logging.WARNING):
        assert cache.get(key(1)) is None
    assert caplog.text == ""


def test_writers_and_readers_at_once_see_whole_files(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 5000)
    bodies = [bytes([value]) * 1000 for value in range(4)]
    seen: list[bytes] = []

    def work(number: int) -> None:
        for turn in range(40):
            cache.put(key((number + turn) % 6), bodies[turn % 4])
            data = cache.get(key((number + turn + 3) % 6))
            if data is not None:
                seen.append(data)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen
    assert all(data in bodies for data in seen)


def test_keys() -> None:
    base = "https://bucket.s3.amazonaws.com/a.png"
    assert cache_key(base) == cache_key("HTTPS://Bucket.S3.amazonaws.com/a.png")
    assert cache_key(base) != cache_key("https://bucket.s3.amazonaws.com/A.png")
    assert cache_key(f"{base}?v=1") != cache_key(f"{base}?v=2")
    for one, other in (
        ("X-Amz-Signature=a&X-Amz-Date=1&X-Amz-Expires=9", "X-Amz-Signature=b&X-Amz-Date=2&X-Amz-Expires=9"),
        ("AWSAccessKeyId=a&Signature=b&Expires=1", "AWSAccessKeyId=a&Signature=c&Expires=2"),
        ("X-Goog-Signature=a&X-Goog-Date=1", "X-Goog-Signature=b&X-Goog-Date=2"),
        ("sv=1&se=2&sr=b&sp=r&sig=a", "sv=1&se=3&sr=b&sp=r&sig=b"),
        ("Expires=1&Signature=a&Key-Pair-Id=k", "Expires=2&Signature=b&Key-Pair-Id=k"),
    ):
        assert cache_key(f"{base}?{one}") == cache_key(f"{base}?{other}")
        assert cache_key(f"{base}?{one}") != cache_key(base)
        assert cache_key(f"{base}?id=7&{one}") != cache_key(f"{base}?id=8&{one}")

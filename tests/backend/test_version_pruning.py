"""Old versions are removed by a rule, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend.versions import (
    BaseCheckpoint,
    ManifestDraft,
    RecipeRecord,
    StoredVersion,
    VersionCorruptError,
    VersionNotFoundError,
    VersionStore,
)

ROOT = Path(__file__).parents[2]


def write(store: VersionStore, value: float = 1.0, *, compared_with: int = 0) -> StoredVersion:
    draft = ManifestDraft(
        base=BaseCheckpoint(name="demo", fingerprint="a" * 64),
        recipe=RecipeRecord(name="r"),
        seed=0,
        metrics={"compared_with": compared_with},
        decision="not better",
    )
    return store.write(7, {"w": torch.full((2,), value)}, draft, {}, {"report/record.json": b"{}"})


def publish(store: VersionStore, number: int, *, pinned: bool = False) -> None:
    store.publish(7, number, store.next_token(7), by_hand=True, pinned=pinned)


def listing(store: VersionStore) -> list[str]:
    return sorted(path.name for path in (store.project_dir(7) / "versions").iterdir())


def test_the_newest_stay_and_nothing_is_left_of_the_others(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(5):
        write(store)
    assert store.prune(7, 2, dry_run=True) == (1, 2, 3)
    assert store.numbers(7) == (1, 2, 3, 4, 5)
    assert store.prune(7, 2) == (1, 2, 3)
    assert listing(store) == ["004", "005"]
    assert store.prune(7, 2) == ()
    with pytest.raises(VersionNotFoundError):
        store.get(7, 1)


def test_what_serves_what_it_was_compared_with_and_what_served_last_stay(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for number in range(1, 13):
        write(store, compared_with=1 if number == 8 else 0)
    for number in (2, 3, 4, 5, 6, 8):
        publish(store, number)
    # 8 serves and was compared with 1; 6, 5 and 4 served last, 3 and 2 before them.
    assert store.prune(7, 1) == (2, 3, 7, 9, 10, 11)
    assert store.numbers(7) == (1, 4, 5, 6, 8, 12)


def test_the_pinned_version_stays_however_old(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(4):
        write(store)
    publish(store, 1, pinned=True)
    assert store.prune(7, 1) == (2, 3)
    current = store.current(7)
    assert current is not None
    assert (current.number, store.is_pinned(7)) == (1, True)
    assert float(current.load_weights()["w"][0]) == 1.0


def test_the_base_model_needs_no_version(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(5):
        write(store)
    publish(store, 2)
    publish(store, 0)
    assert store.prune(7, 1) == (1, 3, 4)  # 2 served before


def test_one_that_cannot_be_read_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    versions = [write(store, float(number)) for number in range(4)]
    versions[3].weights_path.unlink()
    versions[0].weights_path.unlink()
    assert store.prune(7, 1) == (2,)
    assert store.numbers(7) == (1, 3, 4)


def test_nothing_is_removed_where_nobody_knows_what_serves(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(3):
        write(store)
    publish(store, 1)
    (store.project_dir(7) / "current").write_bytes(b"{")
    with pytest.raises(VersionCorruptError):
        store.prune(7, 1)
    assert store.numbers(7) == (1, 2, 3)
    publish(store, 1)  # the remedy that the error names
    assert store.prune(7, 1) == (2,)


def test_a_number_never_comes_again(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(3):
        write(store)
    for path in (store.project_dir(7) / "versions").iterdir():  # as an operator may do
        path.rename(tmp_path / f"gone-{path.name}")
    assert write(store).number == 4


def test_versions_of_releases_that_noted_no_number_are_counted_on(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    write(store)
    (store.project_dir(7) / "numbers.json").unlink()
    assert write(store).number == 2


def test_a_failed_write_costs_no_number(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    manifest = write(store).manifest
    draft = ManifestDraft(**{name: getattr(manifest, name) for name in ManifestDraft.model_fields})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write(7, {"w": torch.zeros(1)}, draft, {"iou": float("nan")})
    assert write(store).number == 2


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import backend.versions as versions
def die(path, ignore_errors): os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = die
versions.VersionStore(Path(sys.argv[1])).prune(7, 1)
"""


def test_a_kill_between_renaming_and_deleting_leaves_no_half_version(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for _ in range(3):
        write(store)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len([name for name in listing(store) if name.startswith(".pruned-")]) == 2
    assert store.numbers(7) == (3,)
    assert [version.number for version in store.list(7)] == [3]
    assert write(store).number == 4  # the next writer clears up
    assert listing(store) == ["003", "004"]


def test_a_version_that_is_removed_while_it_is_read_is_missing_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = VersionStore(tmp_path), VersionStore(tmp_path)
    for _ in range(3):
        write(store)
    original = Path.read_bytes

    def late(self: Path) -> bytes:
        if self.parent.name == "001" and self.name == "manifest.json":
            monkeypatch.setattr(Path, "read_bytes", original)
            assert other.prune(7, 1) == (1, 2)
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert [version.number for version in store.list(7)] == [3]


def test_at_least_one_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        VersionStore(tmp_path).prune(7, 0)
    assert VersionStore(tmp_path).prune(7, 1) == ()


@pytest.mark.parametrize("name", ["../current", "report/../x.json", "/etc/x", "weights.safetensors", "a/b/c.json"])
def test_further_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    store = VersionStore(tmp_path)
    draft = write(store).manifest
    with pytest.raises(ValueError, match="write a folder and a name"):
        store.write(7, {"w": torch.zeros(1)}, draft, {}, {name: b""})
    assert store.numbers(7) == (1,)

"""Project versions on disk: whole or not there, verified, fenced."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.versions import (
    DEFAULT_THRESHOLD,
    BaseCheckpoint,
    FencedError,
    ManifestDraft,
    RecipeRecord,
    StoredVersion,
    VersionCorruptError,
    VersionNotFoundError,
    VersionStore,
    effective_threshold,
    file_sha256,
    version_hash,
    version_name,
)

BASE = BaseCheckpoint(name="demo", fingerprint="a" * 64, taps=(3, 6, 9), input_size_hw=(96, 96))


def draft(**changes: object) -> ManifestDraft:
    fields: dict[str, object] = {
        "base": BASE,
        "recipe": RecipeRecord(name="finetune_decoder", settings={"epochs": 3}),
        "seed": 5,
        "decision": "better",
        "thresholds": {"star": 0.4},
    }
    return ManifestDraft(**{**fields, **changes})  # type: ignore[arg-type]


def write(store: VersionStore, project_id: int = 7, value: float = 1.0) -> StoredVersion:
    weights = {"head.weight": torch.full((2, 3), value), "head.bias": torch.zeros(3)}
    return store.write(project_id, weights, draft(), {"iou": {"star": 0.5}})


def test_a_written_version_is_read_back_as_it_was(tmp_path: Path) -> None:
    written = write(VersionStore(tmp_path))
    read = VersionStore(tmp_path).get(7, 1)
    assert read == written
    assert read.path == tmp_path / "projects" / "7" / "versions" / "001"
    assert read.manifest.base == BASE
    assert read.manifest.thresholds == {"star": 0.4}
    assert read.manifest.project_id == 7
    assert read.metrics() == {"iou": {"star": 0.5}}
    weights = read.load_weights()
    assert set(weights) == {"head.weight", "head.bias"}
    assert torch.equal(weights["head.weight"], torch.ones(2, 3))
    assert read.weights_fingerprint == file_sha256(read.weights_path)


def test_equal_weights_have_equal_fingerprints_and_others_do_not(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    first, again, other = write(store), write(store), write(store, value=1.0001)
    assert [version.number for version in store.list(7)] == [1, 2, 3]
    assert first.weights_fingerprint == again.weights_fingerprint != other.weights_fingerprint


def test_nothing_serves_until_it_is_published_and_rollback_is_a_publication(tmp_path: Path) -> None:
    store, reader = VersionStore(tmp_path), VersionStore(tmp_path)
    assert reader.current(7) is None
    first, second = write(store), write(store, value=2.0)
    assert reader.current(7) is None
    store.publish(7, first, store.next_token(7))
    assert reader.current(7) == first
    store.publish(7, second.number, store.next_token(7))
    assert reader.current(7) == second
    store.publish(7, 1, store.next_token(7))
    assert reader.current(7) == first
    store.publish(7, 0, store.next_token(7))
    assert reader.current(7) is None
    assert VersionStore(tmp_path).current(8) is None


def test_current_reads_files_again_only_after_a_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VersionStore(tmp_path)
    version = write(store)
    store.publish(7, version, store.next_token(7))
    first = store.current(7)
    opened: list[object] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self) or original(self))
    assert store.current(7) is first
    assert opened == []
    store.publish(7, version, store.next_token(7))
    opened.clear()
    assert store.current(7) == first
    assert opened


def test_an_older_token_cannot_publish(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    first, second = write(store), write(store, value=2.0)
    given_up = store.next_token(7)
    newer = VersionStore(tmp_path).next_token(7)
    with pytest.raises(FencedError, match="newest token is 2"):
        store.publish(7, first, given_up)
    assert store.current(7) is None
    store.publish(7, second, newer)
    with pytest.raises(FencedError) as caught:
        store.publish(7, first, given_up)
    assert store.current(7) == second
    assert str(tmp_path) not in caught.value.public


def test_a_token_that_was_never_given_out_is_a_mistake(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    version = write(store)
    with pytest.raises(ValueError, match="never given out"):
        store.publish(7, version, 1)


def test_concurrent_writers_get_their_own_numbers_and_tokens(tmp_path: Path) -> None:
    numbers: list[int] = []
    tokens: list[int] = []

    def work(value: float) -> None:
        store = VersionStore(tmp_path)
        tokens.append(store.next_token(7))
        numbers.append(write(store, value=value).number)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == sorted(tokens) == list(range(1, 9))
    assert len(VersionStore(tmp_path).list(7)) == 8


def test_a_failed_write_leaves_no_version_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VersionStore(tmp_path)

    def full(self: Path, target: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            write(store)
    assert store.list(7) == []
    assert list((tmp_path / "projects" / "7" / "versions").iterdir()) == []


def test_what_a_killed_writer_left_is_ignored_and_then_removed(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    left = tmp_path / "projects" / "7" / "versions" / ".writing-killed"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert store.list(7) == []
    assert write(store).number == 1
    assert not left.exists()


def test_nan_in_metrics_is_refused(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write(7, {"w": torch.zeros(1)}, draft(), {"iou": float("nan")})
    assert store.list(7) == []


def _cut_weights(path: Path) -> None:
    os.truncate(path / "weights.safetensors", 50)


def _change_weights(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def _remove_weights(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def _remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 20)


def _edit_manifest(path: Path, **changes: object) -> None:
    record = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_weights, r"weights\.safetensors: its SHA-256"),
        (_change_weights, r"weights\.safetensors: its SHA-256"),
        (_remove_weights, r"weights\.safetensors: No such file"),
        (_remove_manifest, r"manifest\.json: No such file"),
        (_cut_manifest, r"manifest\.json: not JSON"),
        (lambda path: _edit_manifest(path, schema_version=2), "schema version 2.*upgrade"),
        (lambda path: _edit_manifest(path, seed=-1), r"manifest\.json: seed"),
        (lambda path: _edit_manifest(path, colour="red"), r"manifest\.json: colour"),
        (lambda path: _edit_manifest(path, number=4), "version 4 of project 7, moved here"),
    ],
)
def test_damage_is_an_error_that_names_the_file_and_the_remedy(tmp_path: Path, damage: object, message: str) -> None:
    store = VersionStore(tmp_path)
    version = write(store)
    store.publish(7, version, store.next_token(7))
    damage(version.path)  # type: ignore[operator]
    for read in (lambda: store.get(7, 1), lambda: store.list(7), lambda: VersionStore(tmp_path).current(7)):
        with pytest.raises(VersionCorruptError, match=message) as caught:
            read()
        assert "vlm versions" in str(caught.value)
        assert str(tmp_path) not in caught.value.public
    with pytest.raises(VersionCorruptError):
        store.publish(7, 1, store.next_token(7))


def test_weights_that_change_after_the_manifest_was_read_are_not_loaded(tmp_path: Path) -> None:
    version = write(VersionStore(tmp_path))
    _change_weights(version.path)
    with pytest.raises(VersionCorruptError, match="SHA-256"):
        version.load_weights()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": "003"}', b'{"version": -1}', b"\xff"])
def test_a_damaged_pointer_is_an_error_not_the_base_model(tmp_path: Path, content: bytes) -> None:
    store = VersionStore(tmp_path)
    write(store)
    (tmp_path / "projects" / "7" / "current").write_bytes(content)
    with pytest.raises(VersionCorruptError, match="current"):
        store.current(7)


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    with pytest.raises(VersionNotFoundError, match="no version 3"):
        store.get(7, 3)
    token = store.next_token(7)
    with pytest.raises(VersionNotFoundError):
        store.publish(7, 3, token)
    assert store.current(7) is None


@pytest.mark.parametrize("project_id", [0, -1, True, "7", 1.5])
def test_project_ids_are_positive_integers(tmp_path: Path, project_id: object) -> None:
    with pytest.raises(ValueError, match="project id"):
        VersionStore(tmp_path).project_dir(project_id)  # type: ignore[arg-type]


def test_names() -> None:
    assert version_name("clipseg-rd64-refined", 12, 0, "00ff00ff") == "clipseg-rd64-refined-p12-v000-00ff00ff"
    for wrong in [("a b", 1, 0, "0" * 8), ("demo", 0, 0, "0" * 8), ("demo", 1, -1, "0" * 8)]:
        with pytest.raises(ValueError, match=r"must be|use letters"):
            version_name(*wrong)
    with pytest.raises(ValueError, match="8 lower-case"):
        version_name("demo", 1, 0, "ABCDEF01")


def test_the_hash_covers_weights_prompts_thresholds_and_decoding() -> None:
    def digest(**changes: object) -> str:
        fields: dict[str, object] = {
            "weights": "w1",
            "prompts": {"controls": [{"labels": ["star"], "prompts": ["star"]}]},
            "thresholds": {"star": 0.5},
            "decoding": {"min_area": 4},
        }
        return version_hash(**{**fields, **changes})  # type: ignore[arg-type]

    changed = [
        digest(),
        digest(weights="w2"),
        digest(prompts={"controls": [{"labels": ["star"], "prompts": ["a star"]}]}),
        digest(thresholds={"star": 0.4}),
        digest(decoding={"min_area": 5}),
    ]
    assert len(set(changed)) == len(changed)
    assert all(len(value) == 8 for value in changed)


@given(st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=5))
def test_the_hash_does_not_depend_on_the_order_of_keys(thresholds: dict[str, float]) -> None:
    backwards = dict(reversed(thresholds.items()))
    assert version_hash(weights="w", prompts={}, thresholds=thresholds) == version_hash(
        weights="w", prompts={}, thresholds=backwards
    )


def test_the_config_wins_over_the_version_and_the_version_over_the_default() -> None:
    assert effective_threshold("star", 0.2, draft().thresholds) == 0.2
    assert effective_threshold("star", None, draft().thresholds) == 0.4
    assert effective_threshold("circle", None, draft().thresholds) == DEFAULT_THRESHOLD
    assert effective_threshold("star", None, {}) == DEFAULT_THRESHOLD


def test_a_file_is_hashed_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_sha256(path)
    path.write_bytes(b"two, longer")
    assert file_sha256(path) != first

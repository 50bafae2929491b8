from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from backend.label_studio.config import parse_label_config
from backend.model_store import (
    BusyError,
    ModelFailedError,
    ModelLoadingError,
    ModelStore,
    ServingModel,
    served_version,
)
from backend.versions import BaseCheckpoint, ManifestDraft, RecipeRecord, StoredVersion, VersionStore
from tests.backend.fakes import ColourModel
from vlm_core.errors import CheckpointMismatchError, CheckpointNotFoundError

CONFIG = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i"><Label value="Red" prompt="red"/></BrushLabels></View>"""
PLAN = parse_label_config(CONFIG)


def _store(tmp_path: Path, model: ColourModel | None = None, *, max_loaded: int = 16) -> ModelStore:
    store = ModelStore(lambda: model or ColourModel(), VersionStore(tmp_path), max_loaded=max_loaded)
    store.start()
    assert store.wait(10)
    return store


def _write(
    tmp_path: Path, project_id: int, gain: float, *, fingerprint: str | None = None, key: str = "gain"
) -> StoredVersion:
    versions = VersionStore(tmp_path)
    draft = ManifestDraft(
        base=BaseCheckpoint(name="colours", fingerprint=fingerprint or ColourModel().fingerprint),
        recipe=RecipeRecord(name="test"),
        seed=0,
        decision="better",
    )
    version = versions.write(project_id, {key: torch.tensor([gain])}, draft, {})
    versions.publish(project_id, version, versions.next_token(project_id))
    return version


def _gain(store: ModelStore, project_id: int) -> float:
    model = store.serving(project_id, PLAN)[1]
    assert isinstance(model, ColourModel)
    return model.gain


def test_until_it_is_loaded_the_reason_is_said(tmp_path: Path) -> None:
    gate = threading.Event()

    def load() -> ServingModel:
        gate.wait(10)
        return ColourModel()

    store = ModelStore(load, VersionStore(tmp_path))
    store.start()
    assert store.state.status == "loading"
    with pytest.raises(ModelLoadingError, match="still being loaded"):
        store.version(1, PLAN.hash_payload())
    gate.set()
    assert store.wait(10)
    assert store.state.status == "ready"
    assert store.version(1, PLAN.hash_payload()).name.startswith("colours-p1-v000-")


def test_a_failed_load_says_so_without_paths_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []
    second = threading.Event()

    def load() -> ServingModel:
        tries.append(1)
        if len(tries) == 1:
            raise CheckpointNotFoundError("there is no checkpoint directory '/secret/place'")
        second.wait(10)
        return ColourModel()

    store = ModelStore(load, VersionStore(tmp_path), retry_after_s=0)
    store.start()
    assert store.wait(10)
    assert store.state.status == "failed"
    with pytest.raises(ModelFailedError, match="CheckpointNotFoundError") as caught:
        store.model()
    assert "VLM_CHECKPOINT" in caught.value.public
    assert "secret" not in caught.value.public
    assert "/secret/place" in caplog.text
    second.set()
    assert store._thread is not None
    store._thread.join(10)
    assert store.state.status == "ready"


def test_a_project_gets_its_own_version_and_others_the_base(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _write(tmp_path, 1, 2.0)
    assert (_gain(store, 1), _gain(store, 2)) == (2.0, 1.0)


def test_a_version_serves_from_the_next_request_on_and_going_back_works(tmp_path: Path) -> None:
    store = _store(tmp_path)
    names = [store.serving(1, PLAN)[0].name]
    for gain in (2.0, 3.0):
        _write(tmp_path, 1, gain)
        assert _gain(store, 1) == gain
        names.append(store.serving(1, PLAN)[0].name)
    versions = VersionStore(tmp_path)
    versions.publish(1, 0, versions.next_token(1))
    assert store.serving(1, PLAN)[0].name == names[0]
    assert [name[:15] for name in names] == ["colours-p1-v000", "colours-p1-v001", "colours-p1-v002"]
    assert len({name[-8:] for name in names}) == 3


def test_setup_and_predict_name_the_same_version(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _write(tmp_path, 1, 2.0)
    assert store.version(1, PLAN.hash_payload()) == store.serving(1, PLAN)[0]


@pytest.mark.parametrize(
    "edited",
    [
        CONFIG.replace('prompt="red"', 'prompt="red | rose"'),
        CONFIG.replace('value="Red"', 'value="Rot"'),
        CONFIG.replace("<BrushLabels", '<BrushLabels model_score_threshold="0.4"'),
        CONFIG.replace("BrushLabels", "RectangleLabels"),
    ],
)
def test_an_edited_prompt_changes_the_name(tmp_path: Path, edited: str) -> None:
    store = _store(tmp_path)
    before = store.version(1, PLAN.hash_payload()).name
    after = store.version(1, parse_label_config(edited).hash_payload()).name
    assert before != after
    assert before[:-8] == after[:-8]


def test_a_cosmetic_edit_does_not(tmp_path: Path) -> None:
    store = _store(tmp_path)
    cosmetic = CONFIG.replace('value="Red"', 'value="Red" background="#ff0000" hotkey="1"')
    payloads = [PLAN.hash_payload(), parse_label_config(cosmetic).hash_payload()]
    assert len({store.version(1, payload).name for payload in payloads}) == 1


def test_changed_weights_thresholds_and_temperatures_change_the_name(tmp_path: Path) -> None:
    plain = _write(tmp_path, 1, 2.0)
    changed = [
        StoredVersion(1, 1, plain.path, plain.manifest.model_copy(update=change))
        for change in ({"thresholds": {"Red": 0.4}}, {"temperatures": {"Red": 2.0}})
    ]
    prompts = PLAN.hash_payload()
    names = {served_version("m", "a" * 64, 1, prompts, version).name for version in (None, plain, *changed)}
    names.add(served_version("m", "b" * 64, 1, prompts, None).name)
    names.add(served_version("m", "b" * 64, 1, prompts, plain).name)
    assert len(names) == 6


def test_decoders_used_longest_ago_make_room(tmp_path: Path) -> None:
    store = _store(tmp_path, max_loaded=2)
    for project in (1, 2, 3):
        _write(tmp_path, project, float(project))
    first = store.serving(1, PLAN)[1]
    assert store.serving(1, PLAN)[1] is first
    store.serving(2, PLAN)
    store.serving(1, PLAN)
    store.serving(3, PLAN)  # 2 goes
    assert store.serving(1, PLAN)[1] is first
    assert len(store._decoders) == 2
    assert _gain(store, 2) == 2.0


def test_a_version_of_another_base_does_not_serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = _store(tmp_path)
    _write(tmp_path, 1, 2.0, fingerprint="0" * 64)
    for _ in range(3):
        assert store.serving(1, PLAN)[0].number == 0
        assert _gain(store, 1) == 1.0
    assert caplog.text.count("was trained on") == 1


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _write(tmp_path, 1, 2.0, key="other")
    with pytest.raises(CheckpointMismatchError):
        store.serving(1, PLAN)


def test_the_model_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with store.computing(1), pytest.raises(BusyError, match="busy"), store.computing(0.01):
        pass
    with store.computing(1):
        pass


def test_many_threads_load_one_decoder_once(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _write(tmp_path, 1, 2.0)
    found: list[ServingModel] = []
    threads = [threading.Thread(target=lambda: found.append(store.serving(1, PLAN)[1])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 16
    assert len({id(model) for model in found}) == 1

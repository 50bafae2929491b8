from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from backend import plugin
from backend.api.handlers import QueueUnavailableError
from tests.backend.fakes import MemoryTraining
from tests.core.factories import make_clipseg_directory

CONFIG = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i" model_score_threshold="0.01"><Label value="x"/></BrushLabels>
<Choices name="c" toName="i"><Choice value="yes"/><Choice value="no"/></Choices></View>"""


class TwoX:
    """The parts of label-studio-ml 2.x that its server and a model class share, by their documented behaviour."""

    store: ClassVar[dict[tuple[str, str], Any]] = {}

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.use_label_config(label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None: ...

    def use_label_config(self, label_config: str) -> None:
        self.set("label_config", label_config)

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)

    def get(self, key: str) -> Any:
        return self.store.get((self.project_id, key))

    def set(self, key: str, value: Any) -> None:
        self.store[self.project_id, key] = value

    @property
    def label_config(self) -> Any:
        return self.get("label_config")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plugin") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=64)
    return directory


def _environment(checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    files = tmp_path / "files"
    files.mkdir()
    Image.new("RGB", (40, 30), "red").save(files / "a.png")
    return {
        "VLM_CHECKPOINT": str(checkpoint),
        "VLM_DATA_DIR": str(tmp_path / "data"),
        "VLM_LOCAL_FILES_ROOT": str(files),
        "VLM_DEVICE": "cpu",
    }


def _run(script: str, checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Run a script in a process of its own: label-studio-ml changes how processes start, and brings Flask."""
    environment = os.environ | _environment(checkpoint, tmp_path)
    head = f"CONFIG = {CONFIG!r}\nTASK = {{'id': 1, 'project': 7, 'data': {{'image': '/data/local-files/?d=a.png'}}}}\n"
    ran = subprocess.run(
        [sys.executable, "-c", head + script],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_under_release_1_0_9_by_its_own_server(checkpoint: Path, tmp_path: Path) -> None:
    seen = _run(
        """
import json, os
from label_studio_ml.api import init_app
from backend.plugin import VLMBackend, host
client = init_app(VLMBackend, model_dir=os.environ["VLM_DATA_DIR"]).test_client()
setup = client.post("/setup", json={"project": "7.17", "schema": CONFIG})
host().store.start(); host().store.wait(60)
predict = client.post("/predict", json={"tasks": [TASK, {"id": 2, "project": 7, "data": {}}], "project": "7.17",
    "label_config": CONFIG, "params": {"login": None, "password": None, "context": None}})
nameless = client.post("/predict", json={"tasks": [{"id": 1}, "x"], "project": "7.17", "label_config": CONFIG})
requests = []
host().training.request_training = lambda project, reason: requests.append([project, reason])
model = VLMBackend(label_config=CONFIG)
for event in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "START_TRAINING", "PROJECT_UPDATED"):
    model.process_event(event, {"project": {"id": 7}}, "1", {"workdir": "."})
import pickle
assert pickle.loads(pickle.dumps(VLMBackend)) is VLMBackend
print(json.dumps({"setup": setup.json, "predict": predict.json, "requests": requests,
    "nameless": nameless.json["results"]}))
""",
        checkpoint,
        tmp_path,
    )
    assert seen["setup"] == {"model_version": "INITIAL"}
    good, bad = seen["predict"]["results"]
    assert [region["type"] for region in good["result"]] == ["brushlabels", "choices"]
    assert "model_version" not in good  # Label Studio then takes the name of /setup
    assert "result" not in bad
    assert '"image"' in bad["error"]
    assert ["result" in item or item["error"][:14] for item in seen["nameless"]] == ["the first task"] * 2
    assert seen["requests"] == [[7, e] for e in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "START_TRAINING")]


def test_under_2_x(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("label_studio_ml"), types.ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = TwoX  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", package)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    for name, value in _environment(checkpoint, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plugin, "_host", None)
    backend_class = plugin._make_class()
    host = plugin.host()
    host.store.start()
    assert host.store.wait(60)
    task = {"id": 1, "project": 7, "data": {"image": "/data/local-files/?d=a.png"}}

    model = backend_class(project_id="7", label_config=CONFIG)
    name = model.get("model_version")
    (item,) = backend_class(project_id="7", label_config=CONFIG).predict([task], context=None, login=None)
    assert item["model_version"] == name
    assert name.startswith("tiny-p7-v000-")
    assert [region["type"] for region in item["result"]] == ["brushlabels", "choices"]

    model.set_extra_params('{"model_min_area": 3}')
    assert model.get("model_version") != name
    (item,) = backend_class(project_id="7", label_config=CONFIG).predict([task], context={})
    assert item["model_version"] == model.get("model_version")
    unusable = backend_class(project_id="7", label_config="<View>").get("model_version")
    assert unusable.startswith("tiny-p7-v000-")

    training = MemoryTraining()
    monkeypatch.setattr(host, "training", training)
    model.fit("START_TRAINING", {"project": {"id": 7}})
    model.fit("PROJECT_UPDATED", {"project": {"id": 7}})
    assert training.requests == [(7, "START_TRAINING")]
    training.down = True
    model.fit("ANNOTATION_CREATED", {"project": {"id": 7}})
    with pytest.raises(QueueUnavailableError):
        model.fit("START_TRAINING", {"project": {"id": 7}})

"""Trainings of choices for whole images: alone, beside masks, and each part judged by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import vlm_core
from backend.answers.request import Deadline
from backend.model_store import ModelStore
from backend.plans import ExtraParams
from backend.predictor import Predictor
from backend.settings import Settings
from backend.version_report import read_picture, read_report
from backend.versions import VersionStore
from tests.backend.fakes import MemoryImages
from tests.jobs.label_studio import Json, LabelStudio, brush, picture, serve
from tests.jobs.one_training import QUICK, train

CHOICES = """<Choices name="main" toName="image">
<Choice value="red"/><Choice value="blue"/><Choice value="both"/></Choices>
<Choices name="colours" toName="image" choice="multiple"><Choice value="r" alias="red"/><Choice value="blue"/></Choices>
<Taxonomy name="tree" toName="image"><Choice value="one"><Choice value="red"/><Choice value="blue"/></Choice>
<Choice value="two"/></Taxonomy>"""
IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="brush" toName="image"><Label value="red"/><Label value="blue"/></BrushLabels>'


def tinted(seed: int) -> NDArray[np.uint8]:
    """Noise, all of it red or blue, or half of each: what `answers` says of it."""
    image = np.random.default_rng(seed).integers(0, 60, (48, 48, 3), dtype=np.uint8)
    for half, channel in ((slice(0, 24), (0, 2, 0)[seed % 3]), (slice(24, 48), (0, 2, 2)[seed % 3])):
        image[:, half, channel] += 180
    return image


def answers(seed: int) -> list[Json]:
    """What an annotator says of `tinted(seed)`: one label, several, and a path."""
    colours = [["red"], ["blue"], ["red", "blue"]][seed % 3]
    main = "both" if len(colours) == 2 else colours[0]
    path = ["two"] if main == "both" else ["one", main]
    return [choice("main", [main]), choice("colours", colours), choice("tree", [path], kind="taxonomy")]


def choice(name: str, chosen: list[Any], *, kind: str = "choices") -> Json:
    return {"id": name, "from_name": name, "to_name": "image", "type": kind, "value": {kind: chosen}}


def project(
    count: int,
    *,
    config: str = f"<View>{IMAGE}{CHOICES}</View>",
    say: Callable[[int], list[Json]] = answers,
    draw: Callable[[int], NDArray[np.uint8]] = tinted,
) -> LabelStudio:
    label_studio = LabelStudio(config=config)
    for seed in range(count):
        label_studio.annotate(label_studio.add_task(draw(seed)), say(seed))
    return label_studio


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), data_dir=tmp_path / "data", device="cpu", label_studio_url=None)


@pytest.fixture
def store(settings: Settings) -> Iterator[ModelStore]:
    model = vlm_core.load(settings.checkpoint, "cpu", "float32")
    store = ModelStore(lambda: model, VersionStore(settings.data_dir))
    yield store
    store.close()


def served(store: ModelStore, config: str, seeds: range) -> list[dict[str, Any]]:
    """What annotators get for pictures: per control what its first region holds."""
    images = MemoryImages({f"/{seed}.png": Image.fromarray(tinted(seed)) for seed in seeds})
    predictor = Predictor(store, images, ExtraParams(Path("nowhere")))
    store.start()
    tasks = [{"id": seed, "data": {"image": f"/{seed}.png"}} for seed in seeds]
    try:
        answer = predictor.predict(tasks, project_id=7, label_config=config, deadline=Deadline(60))
    finally:
        predictor.close()
    assert not answer.failed, answer.items
    return [
        {region["from_name"]: next(iter(region["value"].values())) for region in item["result"]}
        for item in answer.items
    ]


def test_choices_alone_are_learned_published_and_served(settings: Settings, store: ModelStore) -> None:
    config = f"<View>{IMAGE}{CHOICES}</View>"
    with serve(project(48, config=config)) as label_studio:
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "published", result.reason
    version = VersionStore(settings.data_dir).get(7, 1)
    assert version.manifest.tag_head is not None
    assert version.manifest.tag_head.questions.keys() == {"main", "colours", "tree"}
    assert not [name for name in version.load_weights() if not name.startswith("tag_heads.")]
    record = read_report(version)
    assert record is not None
    gains = [case for case in record.cases if case.kind == "gain"]
    assert len(gains) == 6 == len({case.task_id for case in gains})
    for case in gains:
        assert case.answers is not None
        assert case.answers.new == case.answers.true != case.answers.old
        assert (case.scored.new, read_picture(version, case) is not None) == (1.0, True)
    new = range(1000, 1030)
    right = [{region["from_name"]: next(iter(region["value"].values())) for region in answers(seed)} for seed in new]
    found = served(store, config, new)
    for name in ("main", "colours", "tree"):
        agreed = [alike(one.get(name, []), own[name]) for one, own in zip(found, right, strict=True)]
        assert np.mean(agreed) >= 0.8, (name, np.mean(agreed))


def alike(one: list[Any], other: list[Any]) -> bool:
    return sorted(map(str, one)) == sorted(map(str, other))


def scramble(seed: int) -> list[Json]:
    """What nobody can learn: answers that have nothing to do with the image."""
    return answers(int(np.random.default_rng(seed).integers(3)))


def test_swapped_answers_do_not_replace_what_was_learned(settings: Settings) -> None:
    """A version serves; then a third of a batch is answered with another label."""

    def swapped(seed: int) -> list[Json]:
        return answers(seed + 1 if seed >= 48 and seed % 3 == 0 else seed)

    label_studio = project(48)
    with serve(label_studio):
        assert train(label_studio, settings, QUICK).outcome == "published"
        for seed in range(48, 72):
            label_studio.annotate(label_studio.add_task(tinted(seed)), swapped(seed))
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "not better", result.reason
    current = VersionStore(settings.data_dir).current(7)
    assert current is not None
    assert current.number == 1


def test_few_answers_are_judged_by_cross_validation(settings: Settings) -> None:
    with serve(project(18)) as label_studio:
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "published", result.reason
    version = VersionStore(settings.data_dir).get(7, 1)
    assert version.manifest.metrics["decided_by"] == "cross-validation, 2 folds by image"
    assert len(version.manifest.data.held_out_images) < 8


def test_too_few_answers_say_so(settings: Settings) -> None:
    with serve(project(10, say=lambda seed: answers(seed) if seed < 5 else [])) as label_studio:
        result = train(label_studio, settings, QUICK)
    assert (result.outcome, result.version) == ("too few", None)


BOTH = f"<View>{IMAGE}{BRUSH}{CHOICES}</View>"


def test_each_part_is_judged_by_itself(settings: Settings) -> None:
    """First choices alone; then masks come, with choices that mean nothing: the choices that serve stay to the bit."""
    label_studio = project(36, config=BOTH)
    with serve(label_studio):
        first = train(label_studio, settings, QUICK)
        assert first.outcome == "published", first.reason
        before = VersionStore(settings.data_dir).get(7, 1).load_weights()
        for seed in range(100, 148):
            image, masks = picture(seed)
            drawn = [brush(label, mask) for label, mask in masks.items()]
            label_studio.annotate(label_studio.add_task(image), [*scramble(seed), *drawn])
        second = train(label_studio, settings, QUICK)
    assert second.outcome == "published", second.reason
    assert second.reason.startswith("masks: mean IoU +")
    assert "; choices: agreement with annotators" in second.reason
    version = VersionStore(settings.data_dir).get(7, 2)
    after = version.load_weights()
    heads = {name for name in before if name.startswith("tag_heads.")}
    assert heads == {name for name in after if name.startswith("tag_heads.")}
    assert all(torch.equal(before[name], after[name]) for name in heads)
    assert len(after) > len(heads)
    verdict = version.metrics()["verdict"]
    assert (verdict["better"], verdict["parts"]["masks"]["better"], verdict["parts"]["tags"]["better"]) == (
        True,
        True,
        False,
    )


def test_choices_that_came_later_leave_the_masks_that_serve(settings: Settings, store: ModelStore) -> None:
    label_studio = project(0, config=BOTH)
    for seed in range(100, 132):
        image, masks = picture(seed)
        label_studio.annotate(label_studio.add_task(image), [brush(label, mask) for label, mask in masks.items()])
    with serve(label_studio):
        first = train(label_studio, settings, QUICK)
        assert first.outcome == "published", first.reason
        before = VersionStore(settings.data_dir).get(7, 1)
        for seed in range(48):  # what is drawn in them has nothing to do with the image
            anywhere = np.zeros((48, 48), dtype=bool)
            y, x = np.random.default_rng(seed).integers(0, 40, 2)
            anywhere[y : y + 8, x : x + 8] = True
            drawn = brush(("red", "blue")[seed % 2], anywhere)
            label_studio.annotate(label_studio.add_task(tinted(seed)), [*answers(seed), drawn])
        second = train(label_studio, settings, QUICK)
    assert second.outcome == "published", second.reason
    after = VersionStore(settings.data_dir).get(7, 2)
    parts = after.metrics()["verdict"]["parts"]
    assert {name: part["better"] for name, part in parts.items()} == {"masks": False, "tags": True}
    old, new = before.load_weights(), after.load_weights()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("tag_heads."))
    assert after.manifest.thresholds == before.manifest.thresholds
    assert {json_name(name) for name in new if name.startswith("tag_heads.")} == {"main", "colours", "tree"}


def json_name(name: str) -> str:
    """The question that a tensor's name holds."""
    question: str = json.loads(name.removeprefix("tag_heads."))[0]
    return question

"""A whole training in one process: Label Studio over HTTP, a tiny checkpoint, versions on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_core
from backend.settings import Settings
from backend.version_report import read_picture, read_report
from backend.versions import VersionStore
from tests.jobs.label_studio import LabelStudio, brush, corrected_project, picture, serve
from tests.jobs.one_training import HEADED, QUICK, train
from training_jobs import training
from training_jobs.errors import CannotTrainError, ImagesAwayError
from training_jobs.fit_checkpoints import FitCheckpoints
from training_jobs.recipes.config import RecipeConfig
from training_jobs.version_record import Result


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), data_dir=tmp_path / "data", device="cpu", label_studio_url=None)


@pytest.fixture
def project() -> Iterator[LabelStudio]:
    with serve(corrected_project(32)) as running:
        yield running


def run(
    label_studio: LabelStudio,
    settings: Settings,
    *,
    config: RecipeConfig = QUICK,
    forced: bool = True,
    token: int | None = None,
    report: Callable[[str, float, float | None], None] = lambda phase, share, loss: None,
) -> Result:
    return train(label_studio, settings, config, forced=forced, token=token, report=report)


def weights(settings: Settings, number: int) -> dict[str, torch.Tensor]:
    return VersionStore(settings.data_dir).get(7, number).load_weights()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_better_version_is_published_with_all_that_there_is_to_know(project: LabelStudio, settings: Settings) -> None:
    phases: list[tuple[str, float]] = []
    result = run(project, settings, report=lambda phase, share, loss: phases.append((phase, share)))
    assert result.outcome == "published", result.reason
    assert result.version == 1
    current = VersionStore(settings.data_dir).current(7)
    assert current is not None
    manifest = current.manifest
    assert (current.number, manifest.decision, manifest.base.taps) == (1, "better", (1, 2, 3))
    assert manifest.base.input_size_hw == (48, 48)
    assert manifest.metrics["decided_by"] == "held-out images"
    assert len(manifest.data.training_images) == 24
    assert len(manifest.data.held_out_images) == 8
    assert len(manifest.data.annotation_ids) == len(manifest.data.task_ids) == 32
    assert manifest.recipe.settings["decoder"]["steps"] == 60
    assert manifest.recipe.chosen["decoder_share"] == 1.0
    metrics = current.metrics()
    for label in ("red", "blue"):
        iou = metrics["verdict"]["labels"][label]["iou"]
        assert result.labels[label].after == iou["new"]
        assert iou["new"] > iou["old"] + 0.2
    assert result.counts == {"tasks": 32, "annotations": 32, "images": 32}
    shares = [share for _, share in phases]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert [phase for phase, _ in itertools.groupby(phase for phase, _ in phases)] == [
        "reading corrections",
        "encoding images",
        "looking at the labels",
        "trying phrases, 1 of 2",
        "trying phrases, 2 of 2",
        "choosing",
        "trying the decoder, 1 of 2",
        "choosing",
        "trying the decoder, 2 of 2",
        "choosing",
        "learning phrases",
        "learning the decoder",
        "choosing",
        "comparing",
        "publishing",
    ]


def test_the_report_has_the_scores_that_the_gate_has_judged_by(project: LabelStudio, settings: Settings) -> None:
    assert run(project, settings).outcome == "published"
    store = VersionStore(settings.data_dir)
    version = store.get(7, 1)
    record = read_report(version)
    assert record is not None
    # One record an image that decided, and their means are the verdict's.
    assert {item.image for item in record.images} == set(version.manifest.data.held_out_images)
    for label, known in version.metrics()["verdict"]["labels"].items():
        scored = [item.labels[label] for item in record.images if item.labels[label].present]
        assert len(scored) == known["images"]
        assert np.mean([one.new for one in scored]) == pytest.approx(known["iou"]["new"], abs=1e-4)
        assert np.mean([one.old for one in scored]) == pytest.approx(known["iou"]["old"], abs=1e-4)
        found = record.intervals[label].new_iou
        if known["images"] >= 5:
            assert found is not None
            assert found[0] <= known["iou"]["new"] <= found[1]
    steps = {one.phase: one.points[-1][0] for one in record.losses}
    folds = [f"trying {what}, {number} of 2" for what in ("phrases", "the decoder") for number in (1, 2)]
    assert {phase: steps[phase] for phase in (*folds, "learning phrases", "learning the decoder")} == {
        **dict.fromkeys(folds[:2], 30),
        **dict.fromkeys(folds[2:], 60),
        "learning phrases": 30,
        "learning the decoder": 60,
    }
    assert record.losses[-1].points[-1][1] < record.losses[-1].points[0][1]
    gains = [case for case in record.cases if case.kind == "gain"]
    assert gains
    assert all(read_picture(version, case) for case in record.cases)
    tasks = {hashlib.sha256(data).hexdigest(): task_id for task_id, data in project.images.items()}
    assert {case.task_id for case in gains} <= {tasks[sha256] for sha256 in version.manifest.data.held_out_images}
    # A candidate has its report too: against itself nothing has changed.
    assert run(project, settings).outcome == "not better"
    candidate = read_report(store.get(7, 2))
    assert candidate is not None
    assert candidate.cases == ()
    assert candidate.images != ()


def test_held_out_images_and_their_annotations_do_not_touch_the_weights(
    project: LabelStudio, settings: Settings, tmp_path: Path
) -> None:
    run(project, settings)
    held_out = set(VersionStore(settings.data_dir).get(7, 1).manifest.data.held_out_images)
    # The same again, but the held-out pictures have other masks. Their part is theirs for ever, so the split is kept.
    split = json.loads((settings.data_dir / "projects" / "7" / "split.json").read_text())["images"]
    assert {sha256 for sha256, part in split.items() if part == "held out"} == held_out
    poisoned = 0
    for task_id, data in project.images.items():
        if training_part(data, split) == "held out":
            wrong = np.zeros((48, 48), dtype=bool)
            wrong[:, :20] = True
            project.annotations[task_id] = []
            project.annotate(task_id, [brush("red", wrong), brush("blue", ~wrong)])
            poisoned += 1
    assert poisoned == 8
    result = run(project, settings)
    assert result.outcome == "not better"
    assert equal(weights(settings, 1), weights(settings, 2))
    # And the other way round: a training image's annotation does matter.
    task_id = next(number for number, data in project.images.items() if training_part(data, split) == "training")
    project.annotations[task_id] = []
    project.annotate(task_id, [brush("red", np.ones((48, 48), dtype=bool))])
    run(project, settings)
    assert not equal(weights(settings, 1), weights(settings, 3))


def training_part(data: bytes, split: dict[str, str]) -> str:
    import hashlib

    return split[hashlib.sha256(data).hexdigest()]


def test_two_runs_give_the_same_bits(project: LabelStudio, settings: Settings) -> None:
    run(project, settings)
    VersionStore(settings.data_dir).publish(7, 0, VersionStore(settings.data_dir).next_token(7))
    run(project, settings)
    assert equal(weights(settings, 1), weights(settings, 2))
    run(project, settings, config=QUICK.model_copy(update={"decoder": QUICK.decoder.model_copy(update={"seed": 1})}))
    assert not equal(weights(settings, 1), weights(settings, 3))


def test_a_version_that_is_not_better_stays_a_candidate(project: LabelStudio, settings: Settings) -> None:
    assert run(project, settings).outcome == "published"
    again = run(project, settings)  # the same version once more: no gain
    assert (again.outcome, again.version) == ("not better", 2)
    store = VersionStore(settings.data_dir)
    current = store.current(7)
    assert current is not None
    assert current.number == 1
    assert store.get(7, 2).manifest.decision == "not better"
    assert store.get(7, 2).manifest.metrics["compared_with"] == 1


def test_a_job_that_was_given_up_cannot_publish(project: LabelStudio, settings: Settings) -> None:
    store = VersionStore(settings.data_dir)
    old = store.next_token(7)
    store.next_token(7)
    result = run(project, settings, token=old)
    assert result.outcome == "superseded"
    assert store.current(7) is None


def test_a_better_version_does_not_replace_a_pinned_one(project: LabelStudio, settings: Settings) -> None:
    store = VersionStore(settings.data_dir)
    store.publish(7, 0, store.next_token(7), by_hand=True, pinned=True)
    result = run(project, settings)
    assert (result.outcome, result.version) == ("pinned", 1)
    assert "mean IoU +" in result.reason
    assert "vlm versions 7 --unpin" in result.reason
    assert store.current(7) is None
    assert store.get(7, 1).manifest.decision == "better"
    assert run(project, settings, forced=False).outcome == "nothing new"  # it was noted as learned


def test_giving_up_from_within_leaves_no_version(project: LabelStudio, settings: Settings) -> None:
    def report(phase: str, share: float, loss: float | None) -> None:
        if phase == "learning phrases":
            raise ImagesAwayError("as if the lock were lost")

    with pytest.raises(ImagesAwayError):
        run(project, settings, report=report)
    assert VersionStore(settings.data_dir).numbers(7) == ()


@pytest.mark.parametrize("damage", [False, True])
def test_a_training_that_was_cut_goes_on_after_its_last_fit_and_ends_with_the_same_bits(
    project: LabelStudio, settings: Settings, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    undisturbed = settings.model_copy(update={"data_dir": settings.data_dir.with_name("undisturbed")})
    run(project, undisturbed)

    def cut(phase: str, share: float, loss: float | None) -> None:
        if phase == "trying the decoder, 2 of 2":
            raise ImagesAwayError("as if it were killed")

    with pytest.raises(ImagesAwayError):
        run(project, settings, report=cut)
    kept = sorted((settings.data_dir / "projects" / "7" / "training").rglob("*.fit"))
    # Two folds' phrases, and the first fold's decoder.
    assert [path.stem for path in kept] == [
        "trying-phrases-1-of-2",
        "trying-phrases-2-of-2",
        "trying-the-decoder-1-of-2",
    ]
    if damage:
        kept[-1].write_bytes(kept[-1].read_bytes()[:-100])
    fitted: list[str] = []
    fit = FitCheckpoints.get_or_fit

    def counted(self: FitCheckpoints, name: str, how: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        def noted() -> dict[str, torch.Tensor]:
            fitted.append(name)
            return how()

        return fit(self, name, noted)

    monkeypatch.setattr(FitCheckpoints, "get_or_fit", counted)
    assert run(project, settings).outcome == "published"
    assert fitted == [
        *(["trying the decoder, 1 of 2"] if damage else []),
        "trying the decoder, 2 of 2",
        "learning phrases",
        "learning the decoder",
    ]
    assert equal(weights(settings, 1), weights(undisturbed, 1))
    assert not (settings.data_dir / "projects" / "7" / "training").exists()


def test_a_training_with_a_head_goes_on_with_the_same_bits_and_its_version_serves(
    project: LabelStudio, settings: Settings
) -> None:
    undisturbed = settings.model_copy(update={"data_dir": settings.data_dir.with_name("undisturbed")})
    phases: list[str] = []
    result = run(project, undisturbed, config=HEADED, report=lambda phase, share, loss: phases.append(phase))
    assert result.outcome == "published", result.reason
    fits = ["trying a head, 1 of 2", "trying a head, 2 of 2", "learning a head"]
    assert [phase for phase in dict.fromkeys(phases) if "head" in phase] == fits

    def cut(phase: str, share: float, loss: float | None) -> None:
        if phase == "learning a head":
            raise ImagesAwayError("as if it were killed")

    with pytest.raises(ImagesAwayError):
        run(project, settings, config=HEADED, report=cut)
    kept = sorted(path.stem for path in (settings.data_dir / "projects" / "7" / "training").rglob("*head*.fit"))
    assert kept == ["trying-a-head-1-of-2", "trying-a-head-2-of-2"]
    assert run(project, settings, config=HEADED).outcome == "published"
    assert equal(weights(settings, 1), weights(undisturbed, 1))

    version = VersionStore(settings.data_dir).current(7)
    assert version is not None
    answered_by = {name: one["answered_by"] for name, one in version.manifest.recipe.chosen["labels"].items()}
    assert set(answered_by.values()) == {"head"}
    model = vlm_core.load(settings.checkpoint, "cpu", "float32")
    served = model.with_learned(version.load_weights())
    assert served.mask_head is not None
    image = Image.fromarray(picture(3)[0])
    asked = [*served.mask_head.phrases, "a phrase of another project"]
    before, after = (each.segment(image, asked).logits for each in (model, served))
    assert torch.equal(before[-1], after[-1])
    assert not torch.allclose(before[:-1], after[:-1], atol=0.1)


def test_another_correction_makes_a_training_begin_anew(project: LabelStudio, settings: Settings) -> None:
    def cut(phase: str, share: float, loss: float | None) -> None:
        if phase == "learning phrases":
            raise ImagesAwayError("as if it were killed")

    def kept() -> set[Path]:
        return set((settings.data_dir / "projects" / "7" / "training").rglob("*.fit"))

    with pytest.raises(ImagesAwayError):
        run(project, settings, report=cut)
    before = kept()
    project.change(project.annotations[1][0])
    with pytest.raises(ImagesAwayError):
        run(project, settings, report=cut)
    assert len(before) == len(kept()) == 4
    assert not before & kept()


def test_a_disk_that_takes_no_checkpoints_costs_only_the_resuming(
    project: LabelStudio, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    directory = settings.data_dir / "projects" / "7"
    directory.mkdir(parents=True)
    (directory / "training").write_bytes(b"")  # in the way
    assert run(project, settings).outcome == "published"
    assert "cannot be written" in caplog.text


def test_too_few_images_are_an_outcome_not_an_error(settings: Settings) -> None:
    with serve(corrected_project(7)) as running:
        result = run(running, settings)
    assert (result.outcome, result.reason) == ("too few", "too few corrections: 7 of 8 annotated images")
    assert VersionStore(settings.data_dir).numbers(7) == ()


def test_with_few_held_out_images_cross_validation_decides(settings: Settings) -> None:
    with serve(corrected_project(12)) as running:
        result = run(running, settings)
        assert result.outcome == "published", result.reason
        record = read_report(VersionStore(settings.data_dir).get(7, 1))
        assert record is not None
        assert len(record.images) == 12  # those of the folds too, each scored by a model that had not learned from it
        manifest = VersionStore(settings.data_dir).get(7, 1).manifest
        assert manifest.metrics["decided_by"] == "cross-validation, 2 folds by image"
        assert manifest.metrics["images"] == 12
        # The version has learned from eight of them: they cannot be its judges.
        again = run(running, settings)
        assert (again.outcome, again.version) == ("too few", None)
        assert "4 of 8 images" in again.reason
        for seed in range(100, 106):
            image, masks = picture(seed)
            running.annotate(running.add_task(image), [brush(label, mask) for label, mask in masks.items()])
        more = run(running, settings)
        assert more.version == 2, more.reason
        assert VersionStore(settings.data_dir).get(7, 2).manifest.metrics["images"] == 10  # 4 + the new ones


def test_automatic_requests_train_only_where_something_is_new(project: LabelStudio, settings: Settings) -> None:
    # The first training waits for its number as every other does.
    result = run(project, settings.model_copy(update={"train_min_annotations": 1000}), forced=False)
    assert (result.outcome, "of 1000 new ones" in result.reason) == ("too few", True)
    assert run(project, settings, forced=False).outcome == "published"
    result = run(project, settings, forced=False)
    assert (result.outcome, result.reason) == ("nothing new", "no annotation has changed since the last training")
    patient = settings.model_copy(update={"train_min_annotations": 3})
    for _ in range(2):
        image, masks = picture(200 + len(project.images))
        project.annotate(project.add_task(image), [brush(label, mask) for label, mask in masks.items()])
    result = run(project, patient, forced=False)
    assert (result.outcome, result.reason[:42]) == ("too few", "too few corrections: 2 of 3 new ones (VLM_")
    assert run(project, patient, forced=True).version == 2


def test_a_config_of_texts_has_nothing_to_learn(project: LabelStudio, settings: Settings) -> None:
    project.config = """<View><Image name="image" value="$image"/>
    <TextArea name="t" toName="image" prompt="day | night"/></View>"""
    assert run(project, settings).outcome == "nothing to learn"


def test_a_config_that_cannot_be_read_cannot_be_trained_for(project: LabelStudio, settings: Settings) -> None:
    project.config = "<View><Image"
    with pytest.raises(CannotTrainError, match="project 7"):
        run(project, settings)


def test_images_that_are_away_are_tried_again_later(settings: Settings) -> None:
    with serve(corrected_project(10)) as running:
        running.failing = set(range(1, 6))
        with pytest.raises(ImagesAwayError, match=r"5 images cannot be fetched for now; task 1: .*503"):
            run(running, settings)


def test_many_images_that_are_away_are_waited_for_and_a_few_are_left_out(settings: Settings) -> None:
    with serve(corrected_project(24)) as running:
        running.failing = set(range(1, 9))
        with pytest.raises(ImagesAwayError, match="8 images"):
            run(running, settings)
        running.failing = {1, 2}
        assert run(running, settings, forced=False).counts["image_failed"] == 2
        assert run(running, settings, forced=False).outcome == "nothing new"
        running.failing = set()
        again = run(running, settings, forced=False)  # no annotation has changed, but two can be read now
        assert (again.version, again.counts["images"]) == (2, 24)


def test_images_that_are_gone_are_named(settings: Settings) -> None:
    with serve(corrected_project(9)) as running:
        running.images.update(dict.fromkeys((3, 5), b"no image"))
        result = run(running, settings)
    assert result.outcome == "too few"
    assert "7 of 8 annotated images; 2 images could not be fetched (task 3: " in result.reason


def test_an_old_annotation_does_not_teach_that_a_new_label_is_absent(settings: Settings) -> None:
    with serve(corrected_project(24)) as running:
        assert run(running, settings).outcome == "published"
        running.config = running.config.replace('<Label value="blue"/>', '<Label value="blue"/><Label value="grey"/>')
        image, masks = picture(300)
        running.annotate(running.add_task(image), [brush(label, mask) for label, mask in masks.items()])
        result = run(running, settings)
    verdict = VersionStore(settings.data_dir).get(7, 2).metrics()["verdict"]["labels"]
    assert result.version == 2
    assert sum(verdict[name]["absent_images"] + verdict[name]["images"] for name in ("red", "blue")) > 8
    assert "grey" not in verdict or verdict["grey"]["absent_images"] <= 1


def test_almost_no_images_to_learn_from_are_too_few(settings: Settings) -> None:
    with serve(corrected_project(24)) as running:
        run(running, settings)
        parts = json.loads((settings.data_dir / "projects" / "7" / "split.json").read_text())["images"]
        assert sorted(parts.values()) == ["held out"] * 8 + ["training"] * 16
        by_hash = {hashlib.sha256(data).hexdigest(): task_id for task_id, data in running.images.items()}
        gone = [by_hash[sha] for sha, part in parts.items() if part == "training"][1:]
        gone += [by_hash[sha] for sha, part in parts.items() if part == "held out"][:1]
        for task_id in gone:
            running.annotations[task_id] = []
        VersionStore(settings.data_dir).publish(7, 0, VersionStore(settings.data_dir).next_token(7))
        result = run(running, settings)
    assert (result.outcome, result.reason) == ("too few", "too few corrections: 1 of 4 images to learn from")


def test_a_version_of_another_checkpoint_is_no_opponent(
    project: LabelStudio, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(project, settings).outcome == "published"
    load = training.vlm_core.load

    def other(*args: str) -> object:
        model = load(*args)
        model.fingerprint = "b" * 64
        return model

    monkeypatch.setattr(training.vlm_core, "load", other)
    result = run(project, settings)
    assert result.outcome == "published"
    manifest = VersionStore(settings.data_dir).get(7, 2).manifest
    assert (manifest.metrics["compared_with"], manifest.base.fingerprint) == (0, "b" * 64)


def test_missing_settings_are_named(settings: Settings) -> None:
    with pytest.raises(CannotTrainError, match="set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"):
        training.connect(settings)

"""What counts as a correction, read from a Label Studio that answers over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import parse_label_config
from backend.label_studio.errors import LabelStudioServerError
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.label_studio.true_tags import TrueTags
from backend.versions import VersionCorruptError
from tests.jobs.label_studio import CONFIG, TOKEN, LabelStudio, brush, corrected_project, picture, serve
from training_jobs.corrections import Corrections, PackedMask, read_corrections, train_labels
from training_jobs.label_history import LabelHistory, keep_label_history, label_history

SIZE = (48, 48)


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    with serve(LabelStudio()) as running:
        yield running


def read(
    label_studio: LabelStudio, tmp_path: Path, config: str = CONFIG, since: Mapping[str, str] | None = None
) -> Corrections:
    with LabelStudioClient(label_studio.url, TOKEN, sleep=lambda seconds: None) as client:
        images = ImageConfig(cache_dir=tmp_path / "images", label_studio_url=label_studio.url)
        fetcher = ImageFetcher(images, client)
        history = LabelHistory(since or {})
        tasks = client.tasks(7, only_annotated=True)
        return read_corrections(
            tasks, fetcher, 7, parse_label_config(config), history, on_task=lambda task, annotations: None
        )


def block(top: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, 10:30] = True
    return mask


def rectangle(label: str, **changes: object) -> dict[str, object]:
    return brush(label, block(0, 1)) | {
        "type": "rectanglelabels",
        "value": {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": [label]},
        **changes,
    }


def test_masks_and_absent_labels(label_studio: LabelStudio, tmp_path: Path) -> None:
    image, masks = picture(0)
    task_id = label_studio.add_task(image)
    annotation = label_studio.annotate(task_id, [brush("red", masks["red"])])
    label_studio.add_task(picture(1)[0])  # nobody has looked at it: it teaches nothing
    found = read(label_studio, tmp_path)
    assert len(found.images) == 1
    corrected = found.images[0]
    assert (corrected.task_id, corrected.annotation_ids, corrected.size_hw) == (task_id, (annotation["id"],), SIZE)
    assert [label.name for label in corrected.labels] == ["red", "blue"]
    assert corrected.present == {"red"}
    assert np.array_equal(corrected.mask("red"), masks["red"])
    assert not corrected.mask("blue").any()
    assert np.array_equal(np.asarray(corrected.open()), image)
    assert dict(found.counts) == {"tasks": 1, "annotations": 1}


def test_a_finished_empty_image_says_that_nothing_is_there(label_studio: LabelStudio, tmp_path: Path) -> None:
    label_studio.annotate(label_studio.add_task(picture(0)[0]), [])
    found = read(label_studio, tmp_path)
    assert found.images[0].present == frozenset()
    assert len(found.images[0].labels) == 2


def test_skipped_annotations_do_not_count(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    skipped = label_studio.annotate(task_id, [brush("red", block(0, 10))], was_cancelled=True)
    counting = label_studio.annotate(task_id, [brush("blue", block(20, 30))])
    found = read(label_studio, tmp_path)
    assert [image.annotation_ids for image in found.images] == [(counting["id"],)]
    assert set(found.images[0].masks) == {"blue"}
    assert found.counts["skipped"] == 1
    assert str(skipped["id"]) not in found.stamps


def test_the_latest_annotation_of_an_annotator_counts(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    label_studio.annotate(task_id, [brush("red", block(0, 10))])
    later = label_studio.annotate(task_id, [brush("blue", block(20, 30))])
    found = read(label_studio, tmp_path)
    assert found.images[0].annotation_ids == (later["id"],)
    assert found.images[0].present == {"blue"}
    assert found.counts["superseded"] == 1


def test_annotators_vote_per_pixel(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    label_studio.annotate(task_id, [brush("red", block(0, 30))], completed_by=1)
    label_studio.annotate(task_id, [brush("red", block(10, 40))], completed_by={"id": 2})
    label_studio.annotate(task_id, [brush("blue", block(0, 5))], completed_by=3)
    corrected = read(label_studio, tmp_path).images[0]
    assert np.array_equal(corrected.mask("red"), block(10, 30))  # two of three
    assert corrected.present == {"red"}  # one of three is no majority
    assert len(corrected.annotation_ids) == 3


def test_ground_truth_wins_over_the_vote(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    truth = label_studio.annotate(task_id, [brush("blue", block(0, 9))], completed_by=1, ground_truth=True)
    label_studio.annotate(task_id, [brush("red", block(10, 40))], completed_by=2)
    corrected = read(label_studio, tmp_path).images[0]
    assert corrected.annotation_ids == (truth["id"],)
    assert corrected.present == {"blue"}


@pytest.mark.parametrize(
    "region",
    [
        brush("red", block(0, 9), value={"format": "rle", "rle": [1, 2, 3], "brushlabels": ["red"]}),
        brush("red", block(0, 9), original_width=99),
        brush("red", block(0, 9), image_rotation=90),
        rectangle("red", value={"x": "left", "y": 0, "width": 5, "height": 5, "rectanglelabels": ["red"]}),
    ],
)
def test_an_annotation_with_an_unreadable_region_is_left_out_whole(
    label_studio: LabelStudio, tmp_path: Path, region: dict[str, object]
) -> None:
    label_studio.annotate(label_studio.add_task(picture(0)[0]), [brush("blue", block(0, 9)), region])
    found = read(label_studio, tmp_path)
    assert found.images == []
    assert found.counts["unreadable"] == 1


def test_regions_that_are_not_ours_do_no_harm(label_studio: LabelStudio, tmp_path: Path) -> None:
    others = [
        {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["night"]}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
        brush("green", block(30, 40)),  # a label that the config no longer has
        brush("red", np.zeros(SIZE, dtype=bool)),  # drawn and erased
        "not a region",
    ]
    label_studio.annotate(label_studio.add_task(picture(0)[0]), [brush("blue", block(0, 9)), *others])  # type: ignore[list-item]
    assert read(label_studio, tmp_path).images[0].present == {"blue"}


def test_boxes_count_only_where_nothing_finer_is(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    label_studio.annotate(task_id, [rectangle("red"), brush("red", block(5, 9)), rectangle("blue")])
    corrected = read(label_studio, tmp_path).images[0]
    assert np.array_equal(corrected.mask("red"), block(5, 9))
    expected = np.zeros(SIZE, dtype=bool)
    expected[:24, :24] = True
    assert np.array_equal(corrected.mask("blue"), expected)


def test_the_same_picture_in_two_tasks_counts_once(label_studio: LabelStudio, tmp_path: Path) -> None:
    image, masks = picture(2)
    label_studio.annotate(label_studio.add_task(image), [brush("red", masks["red"])])
    second = label_studio.add_task(image)
    label_studio.annotate(second, [brush("blue", masks["blue"])])
    found = read(label_studio, tmp_path)
    assert [corrected.task_id for corrected in found.images] == [second]
    assert found.counts["duplicate"] == 1


def test_an_image_that_fails_is_counted_and_the_others_are_read(label_studio: LabelStudio, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        image, masks = picture(seed)
        label_studio.annotate(label_studio.add_task(image), [brush(label, mask) for label, mask in masks.items()])
    label_studio.images[1] = b"no image"
    label_studio.failing.add(2)
    found = read(label_studio, tmp_path)
    assert [corrected.task_id for corrected in found.images] == [3]
    assert found.counts["image_failed"] == 2
    assert [task_id for task_id, _ in found.failures] == [1, 2]
    assert found.away == 1
    assert set(found.stamps) == {str(found.images[0].annotation_ids[0])}  # the others are new once they can be read


def test_a_label_studio_that_is_away_is_an_error(label_studio: LabelStudio, tmp_path: Path) -> None:
    label_studio.status = 500
    with pytest.raises(LabelStudioServerError):
        read(label_studio, tmp_path)


def test_pages_are_read_to_the_end(tmp_path: Path) -> None:
    with serve(corrected_project(53)) as running:
        assert len(read(running, tmp_path).images) == 53


def test_the_fingerprint_changes_with_any_annotation(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    annotation = label_studio.annotate(task_id, [brush("red", block(0, 9))])
    first = read(label_studio, tmp_path)
    assert read(label_studio, tmp_path).fingerprint("x") == first.fingerprint("x") != first.fingerprint("y")
    annotation["updated_at"] = "2026-02-02T00:00:00Z"
    assert read(label_studio, tmp_path).fingerprint("x") != first.fingerprint("x")


def test_a_label_of_two_controls_is_learned_once_by_its_brush() -> None:
    config = """<View><Image name="image" value="$image"/>
    <RectangleLabels name="box" toName="image" model_score_threshold="0.7"><Label value="red"/></RectangleLabels>
    <BrushLabels name="brush" toName="image" model_score_threshold="0.3"><Label value="red" prompt="red | scarlet"/>
    </BrushLabels></View>"""
    labels = train_labels(parse_label_config(config), "image")
    assert [(label.name, label.prompts, label.threshold) for label in labels] == [("red", ("red", "scarlet"), 0.3)]


ALL_TOOLS = """<View><Image name="image" value="$image"/>
<Labels name="what" toName="image"><Label value="red"/></Labels>
<Rectangle name="box" toName="image"/><Brush name="brush" toName="image"/>
<PolygonLabels name="outline" toName="image"><Label value="blue"/></PolygonLabels>
<KeyPointLabels name="point" toName="image"><Label value="blue"/><Label value="star"/></KeyPointLabels>
<BitmaskLabels name="other" toName="image"><Label value="target" model_prompt_from="$caption"/></BitmaskLabels>
<Choices name="night" toName="image" perRegion="true"><Choice value="yes"/></Choices>
<Taxonomy name="tree" toName="image"><Choice value="red"/></Taxonomy>
<TextArea name="text" toName="image" prompt="red"/>
<List name="list" value="$items"/><Ranker name="rank" toName="list"/></View>"""


def test_corrections_of_every_tool_are_learned(label_studio: LabelStudio, tmp_path: Path) -> None:
    square = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0}
    box = rectangle("red", id="1", from_name="box", type="rectangle", value=square)
    outline = {"points": [[0, 50], [100, 50], [100, 100], [0, 100]], "closed": True, "polygonlabels": ["blue"]}
    result = [
        box,
        {**box, "from_name": "what", "type": "labels", "value": {**square, "labels": ["red"]}},
        {**box, "from_name": "night", "type": "choices", "value": {**square, "choices": ["yes"]}},
        rectangle("blue", id="2", from_name="outline", type="polygonlabels", value=outline),
        brush("target", block(0, 9)),
        {"id": "3", "from_name": "tree", "to_name": "image", "type": "taxonomy", "value": {"taxonomy": [["red"]]}},
        {"id": "4", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["red"]}},
        {"id": "5", "from_name": "rank", "to_name": "list", "type": "ranker", "value": {"ranker": {"rank": ["1"]}}},
    ]
    label_studio.annotate(label_studio.add_task(picture(0)[0]), result)  # type: ignore[arg-type]
    found = read(label_studio, tmp_path, ALL_TOOLS)
    (image,) = found.images
    # "star" is pointed at only and "target" is another thing in each task: neither can be learned.
    assert [label.name for label in image.labels] == ["blue", "red"]
    assert image.present == {"red", "blue"}
    assert image.tags == {"tree": TrueTags(frozenset({"red"}), frozenset({"red"}))}
    assert (image.mask("red")[:24, :24].all(), image.mask("red").sum()) == (True, 24 * 24)
    assert (image.mask("blue")[24:].all(), image.mask("blue").sum()) == (True, 24 * 48)
    assert dict(found.counts) == {"tasks": 1, "annotations": 1}


def test_a_label_that_is_only_pointed_at_is_not_absent(label_studio: LabelStudio, tmp_path: Path) -> None:
    point = rectangle("blue", type="keypointlabels", value={"x": 5, "y": 5, "width": 1, "keypointlabels": ["blue"]})
    label_studio.annotate(label_studio.add_task(picture(0)[0]), [point])
    (image,) = read(label_studio, tmp_path, ALL_TOOLS).images
    assert [label.name for label in image.labels] == ["red"]
    assert image.present == frozenset()


def test_an_annotation_says_nothing_about_a_label_that_came_later(label_studio: LabelStudio, tmp_path: Path) -> None:
    old, new, marked = (label_studio.add_task(picture(seed)[0]) for seed in range(3))
    before = label_studio.annotate(old, [brush("red", block(0, 9))])
    since = {"red": "", "blue": before["updated_at"]}
    label_studio.annotate(new, [brush("red", block(0, 9))])
    by_hand = brush("blue", block(20, 30))  # however that came about: what is marked is there
    label_studio.annotate(marked, [by_hand], updated_at="2025-01-01T00:00:00Z")
    found = {image.task_id: image for image in read(label_studio, tmp_path, since=since).images}
    assert [label.name for label in found[old].labels] == ["red"]
    assert [label.name for label in found[new].labels] == ["red", "blue"]
    assert [label.name for label in found[marked].labels] == ["red", "blue"]
    assert found[marked].present == {"blue"}


def test_those_who_could_not_choose_a_label_have_no_vote_on_it(label_studio: LabelStudio, tmp_path: Path) -> None:
    task_id = label_studio.add_task(picture(0)[0])
    for author in (1, 2):
        before = label_studio.annotate(task_id, [brush("red", block(0, 9))], completed_by=author)
    label_studio.annotate(task_id, [brush("blue", block(20, 30))], completed_by=3)
    assert read(label_studio, tmp_path).images[0].present == {"red"}
    corrected = read(label_studio, tmp_path, since={"blue": before["updated_at"]}).images[0]
    assert corrected.present == {"red", "blue"}
    assert np.array_equal(corrected.mask("blue"), block(20, 30))


def test_an_annotation_of_labels_that_are_gone_teaches_nothing(label_studio: LabelStudio, tmp_path: Path) -> None:
    annotation = label_studio.annotate(label_studio.add_task(picture(0)[0]), [brush("crimson", block(0, 9))])
    stamp = annotation["updated_at"]
    found = read(label_studio, tmp_path, since={"red": stamp, "blue": stamp})
    assert found.images == []
    assert found.counts["outdated"] == 1


def test_the_history_of_labels_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    first = label_history(path, ["red", "blue"])
    assert first.since == {"red": "", "blue": ""}
    keep_label_history(path, first, "2026-01-01T00:00:00Z")
    second = label_history(path, ["red", "star"])
    assert second.since == {"red": "", "blue": "", "star": "2026-01-01T00:00:00Z"}
    assert second.could_choose("red", "2020-01-01T00:00:00Z")
    assert not second.could_choose("star", "2026-01-01T00:00:00Z")
    assert second.could_choose("star", "2026-01-01T00:00:01Z")
    keep_label_history(path, second, "2026-02-02T00:00:00Z")
    assert label_history(path, ["star", "red"]).since == second.since
    path.write_text("{")
    with pytest.raises(VersionCorruptError, match=r"labels\.json"):
        label_history(path, ["red"])


def test_packed_masks_come_back() -> None:
    mask = np.random.default_rng(0).random((13, 7)) < 0.5
    assert np.array_equal(PackedMask.of(mask).unpack(), mask)

"""The demo's project: its labelling config, its pictures, and what is true of them.

Pictures are scenes of `vlm_core.demo.scenes` from seeds that no training has seen. Most of them hold a "star",
a shape that the demo checkpoint was never taught, beside shapes that it knows; exactly one of the project's
descriptions is true of each.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import PredictionPlan, parse_label_config
from backend.label_studio.results import brush_region, choices_region
from vlm_core.demo.scenes import KNOWN_SHAPES, Scene, generate_scene

PROJECT_TITLE = "Coloured shapes (VLM demo)"
NEW_SHAPE = "star"
"""A shape that can be drawn but that the demo checkpoint was never taught."""
LABELS = (*KNOWN_SHAPES, NEW_SHAPE)

PROJECT_SEEDS = 3_000_000
EVALUATION_SEEDS = 4_000_000

Pair = tuple[tuple[str, str], tuple[str, str]]
DESCRIPTIONS: tuple[Pair, ...] = (
    (("red", "circle"), ("blue", "square")),
    (("green", "triangle"), ("yellow", "heart")),
    (("white", "cross"), ("purple", "circle")),
    (("orange", "square"), ("black", "triangle")),
)
"""What the pictures may show: two objects each, as (colour, shape)."""

_COLOURS = ("#ff1493", "#00d5ff", "#76ee00", "#ff7f00", "#b000ff", "#ffe600")
"""Of the labels: strong ones, that show on the shapes' own colours."""
_SEARCH_SIZE = (24, 24)


def sentence(pair: Pair) -> str:
    """A description in words: "a red circle and a blue square"."""
    return " and ".join(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape in pair)


def label_config() -> str:
    """The project's labelling config. Ordinary: no attribute of ours is needed, the label names are the prompts."""
    labels = "\n".join(
        f'      <Label value="{label}" background="{colour}"/>' for label, colour in zip(LABELS, _COLOURS, strict=True)
    )
    choices = "\n".join(f'      <Choice value="{sentence(pair)}"/>' for pair in DESCRIPTIONS)
    return f"""<View style="display: flex; gap: 1.5em">
  <View style="flex: 0 0 18em">
    <Header size="5" value="What does the picture show?"/>
    <Choices name="description" toName="image" choice="single-radio">
{choices}
    </Choices>
    <Header size="5" value="Mark each shape"/>
    <BrushLabels name="shapes" toName="image" opacity="0.6">
{labels}
    </BrushLabels>
  </View>
  <View style="flex: 1 1 0; min-width: 0">
    <Image name="image" value="$image" maxWidth="500px" zoom="true" zoomControl="true"/>
  </View>
</View>"""


def plan() -> PredictionPlan:
    """What the backend makes of the labelling config."""
    return parse_label_config(label_config())


@dataclass(frozen=True)
class Picture:
    """One picture of the project and what is true of it.

    Attributes:
        name: its file name.
        scene: the scene; its masks are the truth.
        description: the one of the project's descriptions that is true of it.
    """

    name: str
    scene: Scene
    description: str

    def truth(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Per label that is there the union of its objects, bool (H, W)."""
        return truth_of(self.scene)

    def annotation(self) -> list[dict[str, Any]]:
        """What an annotator who makes no mistake submits: a brush region per label, and the description."""
        controls = {control.kind: control for control in plan().controls}
        brush, choices = controls["brushlabels"], controls["choices"]
        regions = [brush_region(mask, brush, label, 1.0) for label, mask in self.truth().items()]
        regions.append(choices_region(choices, [self.description], 1.0))
        # A person's regions carry no score and are marked as drawn by hand.
        return [{**{k: v for k, v in region.items() if k != "score"}, "origin": "manual"} for region in regions]


def truth_of(scene: Scene) -> dict[str, npt.NDArray[np.bool_]]:
    """Per label of the project that the scene holds the union of its objects, bool (H, W), never empty."""
    masks = {label: scene.mask_of(label) for label in LABELS}
    return {label: mask for label, mask in masks.items() if mask.any()}


def png(scene: Scene) -> bytes:
    """The scene as a PNG file."""
    buffer = io.BytesIO()
    scene.image.save(buffer, "PNG")
    return buffer.getvalue()


def pictures(number: int, *, first_seed: int = PROJECT_SEEDS) -> Iterator[Picture]:
    """Make the project's pictures; three of four hold a star.

    Args:
        number: how many.
        first_seed: the first seed that may be used; the same seed gives the same pictures.
    """
    seeds = count(first_seed)
    for index in range(number):
        pair = DESCRIPTIONS[index % len(DESCRIPTIONS)]
        # Every description gets pictures with and without a star.
        star = (NEW_SHAPE,) if (index // len(DESCRIPTIONS)) % 4 != 3 else ()
        wanted = tuple(dict.fromkeys([*(shape for _, shape in pair), *star]))
        # Colours are the seed's choice: look at thumbnails until it fits, then draw it.
        seed = next(s for s in seeds if _shown(generate_scene(s, must_have=wanted, draw_size=_SEARCH_SIZE)) == [pair])
        name = f"scene-{seed}{'-star' if star else ''}.png"
        yield Picture(name, generate_scene(seed, must_have=wanted), sentence(pair))


def _shown(scene: Scene) -> list[Pair]:
    """The descriptions that are true of a scene."""
    there = {(item.colour, item.shape) for item in scene.objects if item.named}
    return [pair for pair in DESCRIPTIONS if set(pair) <= there]


def evaluation_scenes(number: int, *, first_seed: int = EVALUATION_SEEDS) -> list[Scene]:
    """Scenes to measure on, from seeds used for nothing else; at least every other one holds a star."""
    return [
        generate_scene(first_seed + index, must_have=(NEW_SHAPE,) if index % 2 == 0 else ()) for index in range(number)
    ]


def find_project(client: LabelStudioClient) -> int | None:
    """The demo's project in this Label Studio, if an earlier run made it."""
    return next((int(item["id"]) for item in client.projects() if item["title"] == PROJECT_TITLE), None)


def create_project(
    client: LabelStudioClient, images: Sequence[Picture], *, title: str = PROJECT_TITLE
) -> tuple[int, dict[int, Picture]]:
    """Make the project and upload its pictures, as a project owner does in the browser.

    Returns:
        The project's id, and the picture of each task by task id.
    """
    instruction = "Correct the masks and the description, then submit. Stars are new to the model: mark a few."
    project = client.create_project(title, label_config(), expert_instruction=instruction)
    project_id = int(project["id"])
    for image in images:
        client.upload_file(project_id, image.name, png(image.scene), "image/png")
    return project_id, pictures_of_tasks(client, project_id, images)


def pictures_of_tasks(client: LabelStudioClient, project_id: int, images: Sequence[Picture]) -> dict[int, Picture]:
    """Which picture each task shows. Label Studio puts a random word before an upload's name."""
    by_name = {image.name: image for image in images}
    found: dict[int, Picture] = {}
    for task in client.tasks(project_id):
        name = _uploaded_name(task["data"])
        if name in by_name:
            found[int(task["id"])] = by_name[name]
    return found


def _uploaded_name(data: Mapping[str, Any]) -> str:
    return str(data.get("image", "")).rpartition("/")[2].partition("-")[2]

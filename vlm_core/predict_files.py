"""Masks and tags for image files, written where one can look at them: what `vlm predict` does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from vlm_core.data import open_image, open_mask
from vlm_core.edges import refine_to_edges
from vlm_core.errors import CapabilityError, DataError, InputError
from vlm_core.masks import binarise, bounding_box
from vlm_core.model import Model
from vlm_core.overlay import draw_overlay
from vlm_core.pictures import open_picture
from vlm_core.prompts import Prompt
from vlm_core.tiles import Tile, choose_windows, segment_windows
from vlm_core.types import TagScore, check_phrases
from vlm_core.visual_prompts import Exemplar

_MAX_STEM_BYTES = 100
"""Of UTF-8. File names hold at most 255 bytes, and a prompt is added to the image's name."""


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt on one image.

    Attributes:
        prompt: as asked; alternatives separated by `|`; "exemplar" for one that pictures alone show.
        score: mean probability inside the mask, in [0, 1]; the highest probability anywhere if it is empty.
        area: fraction of the image that the mask covers, in [0, 1].
        box_xyxy: of the mask, px, end exclusive; None where nothing was found.
        mask: file name of the mask, a PNG with 255 inside and 0 outside.
    """

    prompt: str
    score: float
    area: float
    box_xyxy: tuple[int, int, int, int] | None
    mask: str


@dataclass(frozen=True, slots=True)
class FileResult:
    """One image file: what was found, or why it could not be read.

    Attributes:
        image: the path as given.
        width, height: as displayed, EXIF rotation applied, px; 0 when it could not be read.
        prompts: in the order asked.
        tags: best first.
        overlay: file name of the picture; None when the image could not be read.
        error: the reason; None on success.
    """

    image: str
    width: int
    height: int
    prompts: tuple[PromptResult, ...]
    tags: tuple[TagScore, ...]
    overlay: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class _MaskSettings:
    """How masks are made of logits; the arguments of `predict_files` of these names."""

    threshold: float
    tile: Tile
    edges: bool


def predict_files(
    model: Model,
    images: Sequence[Path],
    *,
    prompts: Sequence[str | Prompt],
    tags: Sequence[str],
    out: Path,
    threshold: float = 0.5,
    tile: Tile = None,
    edges: bool = False,
    on_image: Callable[[FileResult], None] = lambda result: None,
) -> list[FileResult]:
    """Predict every file and write overlays, masks and `predictions.json` into `out`.

    Args:
        model: any loaded model; prompts need one that gives masks.
        images: paths of image files that Pillow reads. One that it does not read costs only itself.
        prompts: phrases, each `a | b | ...` where alternatives mean one thing (combined by the maximum), or `Prompt`s.
        tags: texts to rank.
        out: directory, made where it is missing; files of the same name are replaced.
        threshold: probability from which a pixel belongs to a mask, in [0, 1].
        tile: as for `Model.segment`.
        edges: pull masks to the edges of their image; see `vlm_core.edges` for when that helps.
        on_image: called after each image, for progress.

    Raises:
        InputError: neither prompts nor tags, a blank one, no image, a threshold out of range, or an `out` that cannot
            be written to.
        CapabilityError: prompts for a checkpoint that only ranks tags.
    """
    if not images:
        raise InputError("no image was given")
    if not prompts and not tags:
        raise InputError("nothing was asked: give at least one prompt or one tag")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold {threshold} must lie between 0 and 1")
    asked = [p if isinstance(p, Prompt) else Prompt(split_alternatives(p)) for p in prompts]
    names = [p if isinstance(p, str) else p.name or "exemplar" for p in prompts]
    if tags:
        check_phrases(tags, "tag")
    if prompts and not model.can_segment:
        raise CapabilityError(
            f"the checkpoint {model.name!r} ranks tags but gives no masks: ask it for tags only, or load one with a "
            "CLIPSeg decoder, such as CIDAS/clipseg-rd64-refined"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a directory ({error.strerror}): choose another output") from error
    masks = _MaskSettings(threshold, tile, edges)
    results = []
    for path, stem in zip(images, _unique_stems(images), strict=True):
        try:
            image = open_picture(path)
        except DataError as error:
            result = FileResult(str(path), 0, 0, (), (), None, str(error))
        else:
            result = _predict_one(model, path, image, stem, names, asked, tags, out, masks)
        results.append(result)
        on_image(result)
    document = {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "threshold": threshold,
        "tile": tile,
        "edges": edges,
        "asked": [_told(prompt) for prompt in asked],
        "images": [asdict(r) for r in results],
    }
    (out / "predictions.json").write_text(json.dumps(document, indent=1) + "\n")
    return results


def split_alternatives(prompt: str) -> list[str]:
    """`a | b` -> [a, b]. Raises InputError where nothing is left."""
    phrases = [part.strip() for part in prompt.split("|") if part.strip()]
    if not phrases:
        raise InputError(f"the prompt {prompt!r} is blank")
    return phrases


def make_prompts(
    prompts: Sequence[str],
    *,
    not_prompts: Sequence[str] = (),
    exemplars: Sequence[Exemplar] = (),
    text_weight: float | None = None,
    templates: Sequence[str] = ("{}",),
) -> list[Prompt]:
    """The prompts of a command line.

    Args:
        prompts: phrases, each `a | b | ...`.
        not_prompts: what none of them may include; likewise.
        exemplars: pictures of one thing. It is asked for on its own, after the prompts.
        text_weight: mix the exemplars into every prompt instead, so much of its text, 0..1.
        templates: for all of them.

    Raises:
        InputError: a blank phrase, a value that cannot be used, `text_weight` without both prompts and exemplars, or
            `not_prompts` without either.
    """
    if text_weight is not None and not (prompts and exemplars):
        raise InputError("text_weight mixes prompts with exemplars: give at least one of each")
    if not_prompts and not (prompts or exemplars):
        raise InputError("not_prompts leaves something out of what is asked for: give a prompt or an exemplar, too")
    against = [phrase for prompt in not_prompts for phrase in split_alternatives(prompt)]
    mixed = text_weight is not None
    out = [
        Prompt(
            split_alternatives(prompt),
            not_texts=against,
            exemplars=exemplars if mixed else (),
            text_weight=text_weight if text_weight is not None else 1.0,
            templates=templates,
        )
        for prompt in prompts
    ]
    if exemplars and not mixed:
        out.append(Prompt(not_texts=against, exemplars=exemplars, templates=templates))
    return out


def read_exemplar(text: str) -> Exemplar:
    """`IMAGE:MASK`, two files, or `IMAGE:x0,y0,x1,y1`, a box in px -> picture and region.

    Raises:
        InputError: of another form.
        DataError: a file that cannot be read, or a mask of another size than its image.
    """
    path, _, region = text.rpartition(":")
    if not path or not region:
        raise InputError(f"the exemplar {text!r} must be IMAGE:MASK or IMAGE:x0,y0,x1,y1")
    image = open_image(Path(path))
    try:
        x0, y0, x1, y1 = (float(value) for value in region.split(","))
    except ValueError:
        return image, open_mask(Path(region), image.size) > 0
    return image, (x0, y0, x1, y1)


def _told(prompt: Prompt) -> dict[str, object]:
    """A prompt for `predictions.json`."""
    return {
        "texts": prompt.texts,
        "not_texts": prompt.not_texts,
        "exemplars": len(prompt.exemplars),
        "text_weight": prompt.text_weight,
        "templates": prompt.templates,
        "combine": prompt.combine,
    }


def _predict_one(
    model: Model,
    path: Path,
    image: Image.Image,
    stem: str,
    names: Sequence[str],
    asked: Sequence[Prompt],
    tags: Sequence[str],
    out: Path,
    masks: _MaskSettings,
) -> FileResult:
    features = model.encode_image(image, masks=bool(asked), tags=bool(tags))
    found, drawn, legend = [], [], []
    if asked:
        size_hw = (image.height, image.width)
        prepared = model.encode_prompts(asked)
        grid = model.decode(features, prepared.conditions).logits
        if masks.tile is not None:
            levels = choose_windows(size_hw, model.mask_input_hw, masks.tile)
            grid = segment_windows(model, image, prepared.conditions, grid, levels)
        for index, prompt in enumerate(names):
            # one prompt at a time: all of them at full size would fill the memory of a large photograph
            probability = prepared.answer_one(index, grid, size_hw).sigmoid().numpy()
            mask = binarise(probability, masks.threshold)
            if masks.edges:
                mask = refine_to_edges(mask, image)
            name = f"{stem}.mask-{index + 1}-{_slug(prompt)}.png"
            Image.fromarray(mask).convert("L").save(out / name)
            score = float(probability[mask].mean()) if mask.any() else float(probability.max())
            found.append(PromptResult(prompt, score, float(mask.mean()), bounding_box(mask), name))
            drawn.append(mask)
            legend.append(f"{prompt}: {score:.2f}" if mask.any() else f"{prompt}: nothing found")
    ranked = model.rank_features(features, tags) if tags else []
    legend += [f"{'> ' if i == 0 else ''}{s.tag}: {s.probability:.0%}" for i, s in enumerate(ranked)]
    overlay = f"{stem}.overlay.png"
    draw_overlay(image, drawn, legend).save(out / overlay)
    return FileResult(str(path), image.width, image.height, tuple(found), tuple(ranked), overlay, None)


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """File names without ending, made different where two images share one."""
    stems: list[str] = []
    for path in paths:
        short = path.stem.encode("utf-8", "replace")[:_MAX_STEM_BYTES].decode("utf-8", "ignore")
        stem, number = short, 2
        while stem in stems:
            stem, number = f"{short}-{number}", number + 1
        stems.append(stem)
    return stems


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"

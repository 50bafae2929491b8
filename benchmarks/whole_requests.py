"""Cases of whole requests: tasks in, valid Label Studio JSON out, by the predictor that serves them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

import vlm_core
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.model_store import ModelStore
from backend.plans import ExtraParams
from backend.predictor import Deadline, Predictor
from backend.versions import VersionStore
from benchmarks.cases import photograph
from benchmarks.checkpoint import NEW_PHRASES, PHRASES
from benchmarks.masks import fixed_logits
from benchmarks.pairing import Samples, ratios, seconds
from benchmarks.references import Transformers
from benchmarks.results import Row, ms
from vlm_core.model import Model
from vlm_core.types import ImageFeatures, MaskLogits

PROJECT = 1


class Watched:
    """A model that says how long it took, and answers with fixed logits where it has some.

    Its own logits are computed all the same. What stands before the encoder (scaling, normalising) is not the model's.
    """

    def __init__(self, model: Model, logits: np.ndarray | None = None) -> None:
        self.model = model
        self.logits = None if logits is None else torch.from_numpy(logits)
        self.seconds = 0.0
        self._pixels = model._pixels
        model._pixels = self._watched_pixels  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _watched_pixels(self, *args: Any) -> torch.Tensor:
        started = time.perf_counter()
        pixels = self._pixels(*args)
        self.seconds -= time.perf_counter() - started
        return pixels

    def encode_image(self, *args: Any, **kwargs: Any) -> ImageFeatures:
        return self._timed(self.model.encode_image, *args, **kwargs)

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        return self._timed(self.model.encode_text, prompts)

    def decode_batch(self, features: ImageFeatures, conditions: Sequence[torch.Tensor]) -> list[MaskLogits]:
        found = self._timed(self.model.decode_batch, features, conditions)
        if self.logits is None:
            return found
        return [MaskLogits(self.logits[: len(masks.logits)], masks.prompts) for masks in found]

    def _timed(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started


@contextmanager
def predictor(model: Watched, folder: Path, *, feature_cache_bytes: int) -> Iterator[Predictor]:
    store = ModelStore(lambda: model, VersionStore(folder / "data"))
    store.start()
    store.wait(60)
    images = ImageFetcher(ImageConfig(cache_dir=folder / "cache", local_files_root=folder))
    made = Predictor(store, images, ExtraParams(folder / "data"), feature_cache_bytes=feature_cache_bytes)
    yield made
    made.close()


SHAPES = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse", "KeyPoint")


def label_config(phrases: Sequence[str], shapes: Sequence[str] = SHAPES[:1]) -> str:
    labels = "".join(f'<Label value="{phrase}"/>' for phrase in phrases)
    tags = "".join(f'<{s}Labels name="{s.lower()}" toName="image">{labels}</{s}Labels>' for s in shapes)
    return f'<View><Image name="image" value="$image"/>{tags}</View>'


def ask(predictor: Predictor, name: str, config: str) -> str:
    """The JSON of one task's answer."""
    answer = predictor.predict(
        [{"id": 1, "data": {"image": f"/data/local-files/?d={name}"}}],
        project_id=PROJECT,
        label_config=config,
        deadline=Deadline(600),
    )
    assert not answer.failed, answer.items
    return json.dumps({"results": answer.items})


def second_question(checkpoint: Path, folder: Path, repeats: int) -> Iterator[Row]:
    model = Watched(vlm_core.load(checkpoint, "cpu", "auto"))
    first: list[float] = []
    known: list[float] = []
    new: list[float] = []
    with predictor(model, folder, feature_cache_bytes=1 << 30) as asked:
        for round_ in range(2 * repeats + 1):  # the first one warms up
            name = f"question-{round_}.jpg"
            photograph((640, 480), seed=round_).save(folder / name, quality=90)
            config, other = label_config(PHRASES[:1]), label_config(NEW_PHRASES[round_ : round_ + 1])
            model.model._text_cache.clear()
            first.append(seconds(lambda name=name, config=config: ask(asked, name, config)))  # type: ignore[misc]
            known.append(seconds(lambda name=name, config=config: ask(asked, name, config)))  # type: ignore[misc]
            new.append(seconds(lambda name=name, other=other: ask(asked, name, other)))  # type: ignore[misc]
    whole = Samples(tuple(first[1:]))
    for name, values, most in (("known phrase", known, 0.15), ("new phrase", new, 0.35)):
        samples = Samples(tuple(values[1:]))
        yield Row(
            f"second question about an image, {name}",
            "second / first",
            ratios(samples, whole),
            floor=ms(whole),
            ours=ms(samples),
            most=most,
        )


def large_photograph(checkpoint: Path, folder: Path, repeats: int) -> Iterator[Row]:
    path = folder / "large.jpg"
    photograph((4000, 3000)).save(path, quality=90)
    reference = Transformers(checkpoint, torch.float32)
    for labels, most in ((8, 0.15), (32, 0.4)):
        logits = fixed_logits(labels)
        config = label_config(PHRASES[:labels])
        model = Watched(vlm_core.load(checkpoint, "cpu", "auto"), logits)
        ours: list[float] = []
        rest: list[float] = []
        theirs: list[float] = []
        with predictor(model, folder, feature_cache_bytes=0) as asked:
            text = ask(asked, path.name, config)
            item = json.loads(text)["results"][0]
            assert LabelInterface(config).validate_prediction(item, return_errors=True) == []
            assert len(item["result"]) == labels // 2
            for round_ in range(2 * repeats):
                model.seconds = 0.0
                ours.append(seconds(lambda config=config: ask(asked, path.name, config)))  # type: ignore[misc]
                rest.append(ours[-1] - model.seconds)
                if round_ < (2 if labels == 8 else 1):
                    theirs.append(
                        seconds(lambda logits=logits, labels=labels: _reference(reference, path, labels, logits))  # type: ignore[misc]
                    )
        case = f"4000 x 3000 JPEG to JSON, {labels} labels"
        rounds = len(theirs)
        yield Row(case, "all but the model, s", Samples(tuple(rest)), ours=ms(Samples(tuple(ours))), most=most)
        yield Row(
            case,
            f"transformers + SDK / ours ({rounds} run{'s' if rounds > 1 else ''})",
            ratios(Samples(tuple(theirs)), Samples(tuple(ours[:rounds]))),
            reference=ms(Samples(tuple(theirs))),
            ours=ms(Samples(tuple(ours))),
        )


def every_shape(checkpoint: Path, folder: Path, repeats: int) -> Iterator[Row]:
    """What each kind of region adds to a request with brushes, which has all of the fetching and the model."""
    path = folder / "large.jpg"
    photograph((4000, 3000)).save(path, quality=90)
    model = Watched(vlm_core.load(checkpoint, "cpu", "auto"), fixed_logits(8))
    configs = {f"{s}Labels": label_config(PHRASES[:8], (s,)) for s in SHAPES}
    configs["all six"] = label_config(PHRASES[:8], SHAPES)
    rest: dict[str, list[float]] = {name: [] for name in configs}
    whole: dict[str, list[float]] = {name: [] for name in configs}
    sizes: dict[str, int] = {}
    with predictor(model, folder, feature_cache_bytes=0) as asked:
        for round_ in range(2 * repeats + 1):  # the first one warms up
            for name, config in configs.items():
                model.seconds = 0.0
                took = seconds(
                    lambda name=name, config=config: sizes.update({name: len(ask(asked, path.name, config))})
                )  # type: ignore[misc]
                if round_:
                    whole[name].append(took)
                    rest[name].append(took - model.seconds)
    for name in configs:
        yield Row(
            f"4000 x 3000 JPEG to JSON, 8 labels as {name} ({sizes[name] / 1000:.0f} kB)",
            "all but the model, s",
            Samples(tuple(rest[name])),
            ours=ms(Samples(tuple(whole[name]))),
            most=0.15 if name == "BrushLabels" else None,
        )


def _reference(reference: Transformers, path: Path, labels: int, logits: np.ndarray) -> str:
    """What a backend does that is written from transformers' and the SDK's documentation."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    reference.logits(image, PHRASES[:labels])
    regions = []
    for phrase, grid in zip(PHRASES[:labels], torch.from_numpy(logits), strict=True):
        full = torch.nn.functional.interpolate(
            grid[None, None], size=(image.height, image.width), mode="bilinear", align_corners=False
        )[0, 0]
        mask = (full.sigmoid() >= 0.5).numpy()
        if mask.any():
            value = {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [phrase]}
            regions.append({"from_name": "b", "to_name": "image", "type": "brushlabels", "value": value})
    return json.dumps({"results": [{"result": regions}]})

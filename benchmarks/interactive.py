"""Cases of an annotator's questions: whole requests, from Label Studio's JSON to ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vlm_core
from backend.predictor import Deadline, Predictor
from benchmarks.cases import photograph
from benchmarks.checkpoint import PHRASES
from benchmarks.pairing import Samples, ratios, seconds
from benchmarks.results import Row, ms
from benchmarks.whole_requests import PROJECT, Watched, predictor

CONFIG = f"""<View><Image name="image" value="$image"/><TextArea name="ask" toName="image"/>
<Labels name="what" toName="image"><Label value="{PHRASES[0]}"/><Label value="{PHRASES[1]}"/></Labels>
<Brush name="mask" toName="image"/><Rectangle name="box" toName="image" smart="true"/>
<KeyPoint name="point" toName="image" smart="true"/></View>"""


def _drawn(control: str, kind: str, **value: float) -> list[dict[str, Any]]:
    both = {"id": control, "to_name": "image", "original_width": 640, "original_height": 480, "image_rotation": 0}
    return [
        {**both, "from_name": control, "type": kind, "value": value},
        {**both, "from_name": "what", "type": "labels", "value": {**value, "labels": [PHRASES[0]]}},
    ]


def _typed(text: str) -> list[dict[str, Any]]:
    return [{"id": "t", "from_name": "ask", "to_name": "image", "type": "textarea", "value": {"text": [text]}}]


BOX = _drawn("box", "rectangle", x=20, y=20, width=50, height=50, rotation=0)
PHRASE = _typed(PHRASES[0])
QUESTIONS: dict[str, tuple[list[dict[str, Any]], float | None]] = {
    "the same phrase": (PHRASE, 0.15),
    "a rectangle, the label's phrase known": (BOX, 0.15),
    "a key point, the label's phrase known": (_drawn("point", "keypoint", x=50, y=50, width=0.4), 0.15),
    # The example itself has to be encoded.
    "more like this": (_typed("more like this"), None),
}


def questions(checkpoint: Path, folder: Path, repeats: int) -> Iterator[Row]:
    """The first question about an image against those after it."""
    model = Watched(vlm_core.load(checkpoint, "cpu", "auto"))
    first: list[float] = []
    later: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    with predictor(model, folder, feature_cache_bytes=1 << 30) as asked:
        for round_ in range(2 * repeats + 1):  # the first one warms up
            name = f"asked-{round_}.jpg"
            photograph((640, 480), seed=round_).save(folder / name, quality=90)
            model.model._text_cache.clear()
            first.append(seconds(lambda name=name: _ask(asked, name, PHRASE)))  # type: ignore[misc]
            for question, (result, _) in QUESTIONS.items():
                later[question].append(seconds(lambda name=name, result=result: _ask(asked, name, result)))  # type: ignore[misc]
    whole = Samples(tuple(first[1:]))
    for question, (_, most) in QUESTIONS.items():
        samples = Samples(tuple(later[question][1:]))
        yield Row(
            f"an annotator's second question: {question}",
            "second / first",
            ratios(samples, whole),
            floor=ms(whole),
            ours=ms(samples),
            most=most,
        )


def _ask(asked: Predictor, name: str, result: list[dict[str, Any]]) -> str:
    draft = {"updated_at": "2026", "result": BOX}
    task = {"id": 1, "data": {"image": f"/data/local-files/?d={name}"}, "drafts": [draft]}
    body = json.loads(json.dumps({"tasks": [task], "context": {"result": result}}))
    answer = asked.predict(
        body["tasks"], project_id=PROJECT, label_config=CONFIG, deadline=Deadline(600), context=body["context"]
    )
    assert not answer.failed, answer.items
    return json.dumps({"results": answer.items})

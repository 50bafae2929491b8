from __future__ import annotations

import httpx

from backend import parts
from backend.label_studio.client import LabelStudioClient
from backend.settings import Settings
from vlm_core.compiled import compiled


def test_whatever_draws_and_writes_a_mask_is_compiled_before_the_first_request() -> None:
    from backend.label_studio import brush
    from vlm_core import runs, trace

    parts.prepare_masks()
    loops = {
        f"{module.__name__}.{name}": value
        for module in (brush, runs, trace)
        for name, value in vars(module).items()
        if isinstance(value, compiled)
    }
    waiting = {name for name, loop in loops.items() if loop._ready is None}
    # Pictures are read from annotations only, which comes with the first training.
    assert waiting <= {"backend.label_studio.brush._unpack", "vlm_core.runs._toggles", "vlm_core.runs._paint"}


def test_a_prediction_is_written_again_only_when_a_given_up_import_of_it_must_have_ended() -> None:
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return httpx.Response(201, json={"created": 0})

    settings = Settings(label_studio_timeout_s=7.0)
    transport = httpx.MockTransport(answer)
    timeout_s = settings.label_studio_timeout_s
    with LabelStudioClient("http://ls.test", "legacy", timeout_s=timeout_s, transport=transport) as client:
        client.import_predictions(1, [])
        client.project(1)
    imported, other = waits
    assert (imported, other) == (21.0, 7.0)
    assert parts.patience(settings).settle_s >= imported + other

from __future__ import annotations

from backend import parts
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

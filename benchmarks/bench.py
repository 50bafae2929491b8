"""The engine against its references and its reach: `make bench`, or `python -m benchmarks.bench`.

Prints the table and writes benchmarks/RESULTS.md with a plot. Every figure is a ratio of paired runs where it can be;
the machine should be idle. `--only PART` (repeatable) measures some parts and keeps nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import cases, gpu, interactive, processes, training_step, whole_requests
from benchmarks.checkpoint import make_checkpoint
from benchmarks.results import Row, machine, table, write

HERE = Path(__file__).parent
PARTS: dict[str, Callable[[Path, Path, int], Iterator[Row]]] = {
    "model": cases.model_only,
    "int8": cases.below_the_floor,
    "views": cases.masks_and_tags,
    "brush": cases.brush_codec,
    "questions": whole_requests.second_question,
    "interactive": interactive.questions,
    "requests": whole_requests.large_photograph,
    "shapes": whole_requests.every_shape,
    "training": training_step.cached_step,
    "memory": processes.peak_memory,
    "start": processes.start_up,
    "gpu": gpu.throughput,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="measure this part only; may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs of each case (default 5)")
    parser.add_argument(
        "--checkpoint", type=Path, default=HERE / "checkpoint", help="where the random checkpoint is kept, 500 MB"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    _be_quiet()
    facts = machine()
    print(facts, flush=True)
    checkpoint = make_checkpoint(arguments.checkpoint)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or PARTS:
            for row in PARTS[name](checkpoint, Path(folder), arguments.repeats):
                print(f"  {row.case}: {row.figure_name} {row.figure}  {row.reach}  {row.verdict}", flush=True)
                rows.append(row)
    print("\n" + table(rows))
    if not arguments.only:
        write(rows, facts, _notes(rows), HERE / "RESULTS.md")
        print(f"\nwritten: {HERE / 'RESULTS.md'}")


def _notes(rows: Sequence[Row]) -> list[str]:
    import torch

    from vlm_core.checkpoint import resolve_dtype

    notes = []
    if not torch.cuda.is_available():
        notes.append("This machine has no GPU: its rows are missing here, and those of another one are in GPU.md.")
    if resolve_dtype("auto", torch.device("cpu")) != torch.bfloat16:
        notes.append(
            "This CPU does not compute in bfloat16: it is emulated, several times slower than float32, and "
            '`dtype="auto"` takes float32. The rows in bf16 compare like with like all the same; transformers was run '
            "once in them."
        )
    return notes


def _be_quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()

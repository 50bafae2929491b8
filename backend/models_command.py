"""`vlm models`: what can be loaded, what a checkpoint is, and fetching one so that later starts need no network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import vlm_core
from vlm_core import checkpoint
from vlm_core.catalogue import KNOWN, cached, find_checkpoints, unfinished_run
from vlm_core.description import Description, describe
from vlm_core.errors import CheckpointError, CheckpointNotFoundError, InputError


def pull(name: str, to: Path | None) -> Path:
    """Fetch a checkpoint from the hub and make sure that it loads.

    Args:
        name: a hub id.
        to: a directory that does not exist yet, to carry the files elsewhere; None: the hub's cache alone (HF_HOME).

    Returns:
        Where the checkpoint is.

    Raises:
        CheckpointError: it cannot be fetched, or is none that can be served. `to` is not made then.
        InputError: `to` exists already.
    """
    if to is not None and to.exists():
        raise InputError(f"{to} exists already: choose another directory, or remove it")
    found = checkpoint.find(name)
    vlm_core.load(found, device="cpu")
    if to is None:
        return found
    temporary = to.with_name(f".{to.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    # The cache holds links to files elsewhere; a copy holds the files.
    shutil.copytree(found, temporary, symlinks=False)
    temporary.rename(to)
    return to


def listing() -> list[dict[str, Any]]:
    """What is published and known, and what else the hub's cache holds: a JSON-able row each.

    `here` is where it is on this machine, or None; `missing` what a copy that is there lacks: one that lacks something
    is not `here`.
    """
    there = {"demo": checkpoint.DEMO_DIRECTORY, **cached()}
    rows = []
    for known in KNOWN:
        row = _row(known.name, there.pop(known.name)) if known.name in there else {"here": None, "missing": []}
        told = {key: getattr(known, key) for key in ("masks", "tags", "megabytes", "good_for", "terms")}
        rows.append({"name": known.name, **told, "here": row["here"], "missing": row["missing"]})
    return rows + [_row(name, path) for name, path in there.items()]


def local_listing(directories: list[Path]) -> list[dict[str, Any]]:
    """What is in some directories: rows as of `listing`, with their paths as names.

    Raises:
        CheckpointNotFoundError: one is no directory.
    """
    for directory in directories:
        if not directory.is_dir():
            raise CheckpointNotFoundError(f"there is no directory {str(directory)!r}: give one that holds checkpoints")
    found = dict.fromkeys(path for directory in directories for path in find_checkpoints(directory))
    return [_row(str(path), path) for path in found]


def _row(name: str, path: Path) -> dict[str, Any]:
    """What is on this machine; one that cannot be described lacks what the error says."""
    row = {"name": name, "masks": False, "tags": False, "megabytes": 0.0, "good_for": "", "terms": None, "here": None}
    run = unfinished_run(path)
    if run is not None:
        made, steps = run
        return {**row, "missing": [f"a checkpoint: {made} of {steps} updates are made; go on with vlm train --resume"]}
    try:
        said = describe(path)
    except CheckpointError as error:
        return {**row, "missing": [str(error)]}
    return {
        **row,
        **{key: getattr(said, key) for key in ("masks", "tags", "megabytes")},
        "good_for": said.trained or said.layout,
        "here": None if said.missing else str(path),
        "missing": list(said.missing),
    }


def show(name: str) -> Description:
    """What a checkpoint on this machine is.

    Raises:
        CheckpointNotFoundError: it is not on this machine; nothing is fetched.
        CheckpointMismatchError: it is none that can be loaded.
    """
    if name == "demo":
        return describe(checkpoint.DEMO_DIRECTORY)
    path = Path(name).expanduser()
    if path.exists():
        return describe(path)
    found = cached().get(name)
    if found is None:
        raise CheckpointNotFoundError(
            f"{name!r} is not on this machine: give a directory, or fetch it with vlm models pull"
        )
    return describe(found)


def print_listing(rows: list[dict[str, Any]]) -> None:
    """A table for people of what `listing` gives, with terms and what else can be loaded."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    for column in ("gives", "MB", "here"):
        table.add_column(column, no_wrap=True)
    table.add_column("good for")
    for row in rows:
        state = "yes" if row["here"] else "in part" if row["missing"] else ""
        table.add_row(row["name"], _gives(row), f"{row['megabytes']:.4g}", state, row["good_for"])
    console = Console()
    console.print(table)
    for row in rows:
        for item in row["missing"]:
            console.print(f"\n{row['name']} lacks {item}", highlight=False, markup=False)
    for terms in dict.fromkeys(row["terms"] for row in rows if row["terms"]):
        names = ", ".join(row["name"] for row in rows if row["terms"] == terms)
        console.print(f"\n{names}: {terms}", highlight=False)
    console.print(
        "\nAlso: a directory in one of these layouts, one that vlm train wrote, or CLIPSeg's original decoder "
        "(rd64-uni-refined.pth) in the directory of its CLIP. vlm models DIR lists what is in a directory, vlm models "
        "show PATH says what one is."
    )


def print_local_listing(rows: list[dict[str, Any]]) -> None:
    """A few lines for each row of `local_listing`; paths stand alone, unbroken, to be copied."""
    if not rows:
        print("No checkpoint in there. vlm models lists what can be loaded.")
    for row in rows:
        print(row["name"])
        if _gives(row):
            print(f"    {_gives(row)}, {row['megabytes']:.4g} MB: {row['good_for']}")
        for item in row["missing"]:
            print(f"    lacks {item}")


def _gives(row: dict[str, Any]) -> str:
    return " + ".join(what for what in ("masks", "tags") if row[what])


def print_description(description: Description) -> None:
    """A line for each fact."""
    for name, value in description.to_dict().items():
        if name == "missing" or value == "":
            continue
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        print(f"{name.replace('_', ' '):12} {text}")
    for item in description.missing:
        print(f"missing      {item}")

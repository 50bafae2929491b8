"""`vlm models`: what can be loaded, what a checkpoint is, and fetching one so that later starts need no network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import vlm_core
from vlm_core import checkpoint
from vlm_core.catalogue import KNOWN, Description, cached, describe
from vlm_core.errors import CheckpointNotFoundError, InputError


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
    """What can be loaded, a JSON-able row each; `here` is where it is on this machine, or None."""
    here = {"demo": checkpoint.DEMO_DIRECTORY, **cached()}
    return [
        {
            "name": known.name,
            "masks": known.masks,
            "tags": known.tags,
            "megabytes": known.megabytes,
            "good_for": known.good_for,
            "terms": known.terms,
            "here": str(here[known.name]) if known.name in here else None,
        }
        for known in KNOWN
    ]


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
    """A table for people, and what else can be loaded."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    for column in ("gives", "MB", "here"):
        table.add_column(column, no_wrap=True)
    table.add_column("good for")
    for row in rows:
        gives = " + ".join(what for what in ("masks", "tags") if row[what])
        table.add_row(row["name"], gives, str(row["megabytes"]), "yes" if row["here"] else "", row["good_for"])
    console = Console()
    console.print(table)
    for terms in dict.fromkeys(row["terms"] for row in rows):
        names = ", ".join(row["name"] for row in rows if row["terms"] == terms)
        console.print(f"\n{names}: {terms}", highlight=False)
    console.print(
        "\nAlso: a directory in one of these layouts, one that vlm train wrote, or CLIPSeg's original decoder "
        "(rd64-uni-refined.pth) in the directory of its CLIP. vlm models show PATH says what a directory is."
    )


def print_description(description: Description) -> None:
    """A line for each fact."""
    for name, value in description.to_dict().items():
        if name == "missing":
            continue
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        print(f"{name.replace('_', ' '):12} {text}")
    for item in description.missing:
        print(f"missing      {item}")

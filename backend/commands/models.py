"""`vlm models`: checkpoints that can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.groups import ListByDefault
from backend.commands.settings import settings_or_exit

models_app = typer.Typer(cls=ListByDefault, help="Checkpoints: what can be loaded, what is here, how to fetch one.")


@models_app.command("list")
def models_list(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="List the checkpoints and runs in here instead.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the checkpoints that can be loaded, what each is good for, and which are on this machine.

    Example: vlm models

    Example: vlm models runs models
    """
    from backend.models_command import listing, local_listing, print_listing, print_local_listing

    rows = local_listing(directories) if directories else listing()
    if json_:
        typer.echo(json.dumps(rows, indent=2))
    elif directories:
        print_local_listing(rows)
    else:
        print_listing(rows)


@models_app.command("show")
def models_show(
    checkpoint: Annotated[
        str, typer.Argument(help="A directory, an original decoder file, demo, or a fetched hub id.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint on this machine is and what it lacks; its weights are not loaded.

    Example: vlm models show models/clipseg
    """
    from backend.models_command import print_description, show

    description = show(checkpoint)
    if json_:
        typer.echo(json.dumps(description.to_dict(), indent=2))
    else:
        print_description(description)
    raise typer.Exit(1 if description.missing else 0)


@models_app.command("pull")
def models_pull(
    checkpoint: Annotated[str | None, typer.Argument(help="Hub id (VLM_CHECKPOINT).")] = None,
    to: Annotated[Path | None, typer.Option(help="A new directory for a copy, to carry to another machine.")] = None,
) -> None:
    """Fetch a checkpoint, and try whether it loads; later starts need no network.

    Example: vlm models pull CIDAS/clipseg-rd64-refined --to models/clipseg
    """
    settings = settings_or_exit(checkpoint=checkpoint)
    from backend.models_command import pull

    typer.echo(f"{settings.checkpoint} is in {pull(settings.checkpoint, to)}")

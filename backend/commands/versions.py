"""`vlm versions`: what a project has learned, and which version serves."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from backend.commands.settings import settings_or_exit


def versions_command(
    project: Annotated[int | None, typer.Argument(help="Label Studio's id; all projects without it.")] = None,
    use: Annotated[
        int | None,
        typer.Option(min=0, help="Let this version serve PROJECT until a better one is there; 0: the base model."),
    ] = None,
    pin: Annotated[
        int | None, typer.Option(min=0, help="Let this version serve PROJECT until --unpin, whatever is trained.")
    ] = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Let better versions replace the pinned one again.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a project's model versions, and choose which one serves.

    Example: vlm versions 7 --use 2
    """
    settings = settings_or_exit()
    from backend.job_commands import print_versions, unpin_version, use_version, versions_report

    asked = [
        name for name, given in (("--use", use is not None), ("--pin", pin is not None), ("--unpin", unpin)) if given
    ]
    if len(asked) > 1:
        raise typer.BadParameter(f"give one of {', '.join(asked)}")
    if asked and project is None:
        raise typer.BadParameter("name the PROJECT too", param_hint=asked[0])
    if project is not None and unpin:
        unpin_version(settings, project)
    elif project is not None and (number := use if pin is None else pin) is not None:
        use_version(settings, project, number, pinned=pin is not None)
    rows = versions_report(settings, project)
    if json_:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_versions(rows)

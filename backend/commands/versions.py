"""`vlm versions` and `vlm report`: what a project has learned, and which version serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.groups import ListByDefault
from backend.commands.settings import settings_or_exit

versions_app = typer.Typer(
    cls=ListByDefault,
    rich_markup_mode=None,
    help="A project's model versions: which there are, which one serves, and how they compare.",
)

_Project = Annotated[int, typer.Argument(min=1, help="Label Studio's id of the project.")]


@versions_app.command("list")
def versions_list(
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
    from backend.version_commands import print_versions, unpin_version, use_version, versions_report

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


@versions_app.command("compare")
def versions_compare(
    project: _Project,
    first: Annotated[int, typer.Argument(min=1, help="A version's number.")],
    second: Annotated[int, typer.Argument(min=1, help="Another version's number.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two versions label by label, by what was measured when each was made.

    On the images that both were measured on, where there are enough; it says so where there are not.

    Example: vlm versions compare 7 2 3
    """
    settings = settings_or_exit()
    from backend.version_compare import compare_versions, print_comparison
    from backend.versions import VersionStore

    comparison = compare_versions(VersionStore(settings.data_dir), project, first, second)
    if json_:
        typer.echo(json.dumps(comparison.to_json(), indent=2))
    else:
        print_comparison(comparison)


@versions_app.command("prune")
def versions_prune(
    project: Annotated[int | None, typer.Argument(min=1, help="Label Studio's id; all projects without it.")] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Keep so many of the newest versions (VLM_KEEP_VERSIONS).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would go.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove old versions, with their reports.

    The newest stay, the three that served last, the pinned one, the one that serves, and the one that it was compared
    with. Their numbers are not used again. Every training ends with this.

    Example: vlm versions prune 7 --keep 5 --dry-run
    """
    settings = settings_or_exit()
    from backend.version_commands import prune_versions

    removed = prune_versions(settings, project, keep=keep, dry_run=dry_run)
    if json_:
        typer.echo(json.dumps({str(number): list(numbers) for number, numbers in removed.items()}))
        return
    for number, numbers in removed.items():
        said = ", ".join(map(str, numbers)) or "none"
        typer.echo(f"project {number}: {'would remove' if dry_run else 'removed'} {said}")


def report_command(
    version: Annotated[str, typer.Argument(help="The project's id in Label Studio, or a version's whole name.")],
    number: Annotated[
        int | None, typer.Argument(min=1, help="With a project's id: the version's number; the newest without it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file to write (report-p<project>-v<number>.html).")] = None,
) -> None:
    """Write the report on a version: what the gate said, each label before and after, pictures; one HTML file.

    Example: vlm report 7 3

    Example: vlm report demo-p7-v003-0a1b2c3d --out report.html
    """
    settings = settings_or_exit()
    from backend.version_commands import find_version, write_report

    try:
        project_id, found = find_version(settings, version, number)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="VERSION") from None
    typer.echo(write_report(settings, project_id, found, out or Path(f"report-p{project_id}-v{found:03d}.html")))

"""`vlm jobs` and `vlm prelabel`: what the workers do, and asking them to pre-label."""

from __future__ import annotations

import functools
import json
import sys
from typing import Annotated

import typer

from backend.commands.settings import settings_or_exit


def jobs_command(
    project: Annotated[int | None, typer.Option(help="Only this project's, by Label Studio's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most ended jobs.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it anew every second, until Ctrl-C.")] = False,
    cancel: Annotated[
        int | None, typer.Option(min=1, metavar="PROJECT", help="Give up this project's training that waits or runs.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the jobs that wait, run and have ended, trainings and pre-labelling, and what became of them.

    Example: vlm jobs --project 7

    Example: vlm jobs --watch
    """
    settings = settings_or_exit()
    from backend.job_commands import cancel_job, jobs_report, print_jobs, watch_jobs

    if cancel is not None:
        typer.echo(cancel_job(settings, cancel))
        return
    if watch:
        watch_jobs(settings, project_id=project, limit=limit)
        return
    report = jobs_report(settings, project_id=project, limit=limit)
    if json_:
        typer.echo(json.dumps(report, indent=2))
    else:
        print_jobs(report)


def prelabel_command(
    project: Annotated[int, typer.Option(min=1, help="Label Studio's id of the project.")],
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="COLUMN OPERATOR VALUE, like 'total_annotations = 0' or 'data.city ~ Rome'; a column of the Data "
            "Manager and one of = != < <= > >= ~ !~. Repeatable: all must hold.",
        ),
    ] = None,
    tab: Annotated[int | None, typer.Option(min=1, help="Only the tasks of this Data Manager tab, by its id.")] = None,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Only tasks that have no prediction of any version.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most tasks.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Ask for nothing; drop what no worker has begun.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until it is done, and draw how far it is.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Let the workers predict a project's tasks and import the predictions into Label Studio.

    A task that has a prediction of the serving version gets no second one, so this can be repeated and goes on after
    an interruption. Ctrl-C ends the drawing only.

    Example: vlm prelabel --project 7 --filter "total_annotations = 0" --only-missing
    """
    settings = settings_or_exit()
    from backend import prelabel_commands
    from backend.label_studio.task_filter import TaskFilterError, parse_condition
    from backend.prelabel_queue import PrelabelRequest

    if stop:
        prelabel_commands.stop(settings, project)
        return
    try:
        for text in filter_ or []:
            parse_condition(text)
    except TaskFilterError as error:
        raise typer.BadParameter(str(error), param_hint="--filter") from None
    request = PrelabelRequest(tuple(filter_ or ()), tab, only_missing, limit)
    say = functools.partial(print, file=sys.stderr, flush=True)
    try:
        outcome = prelabel_commands.prelabel(settings, project, request, wait=wait, say=say)
    except KeyboardInterrupt:
        say("the workers go on; `vlm jobs` shows how far they are")
        raise typer.Exit(130) from None
    if json_:
        typer.echo(json.dumps(outcome))
    elif outcome.get("ended"):
        typer.echo(prelabel_commands.summary(outcome["ended"]))
    if outcome["problem"]:
        say(f"vlm: {outcome['problem']}")
        raise typer.Exit(1)

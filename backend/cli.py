"""`vlm`: the commands of the server, the worker and the models.

A composition root: only here may all three packages meet, so the commands that need the jobs' package stand here and
not with the others in `backend.commands`.

A command ends with exit code 0 only on success. An error that we foresee is one message on stderr and exit
code 1; wrong usage is exit code 2.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from backend.commands.convert import convert_app
from backend.commands.jobs import jobs_command, prelabel_command
from backend.commands.models import models_app
from backend.commands.predict import predict_command
from backend.commands.projects import check_config_command, connect_command, doctor_command
from backend.commands.settings import settings_or_exit
from backend.commands.start import check_deployment_command, demo_command, serve_command
from backend.commands.train import evaluate_command, train_app
from backend.commands.versions import report_command, versions_app

app = typer.Typer(
    name="vlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point of the console script: runs a command and turns foreseen errors into one message."""
    # Errors are known by their base classes only, so that nothing heavy is imported for them.
    from vlm_core.errors import VLMError

    try:
        app()
    except VLMError as error:
        print(f"vlm: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback()
def _commands() -> None:
    # With a callback `vlm` stays a group of commands, also while there is only one.
    """CLIP and CLIPSeg for Label Studio: images arrive pre-labelled, corrections make the model better."""


def worker_command(
    queues: Annotated[
        str,
        typer.Option(help="What to work on, the most urgent first: a GPU each for 'training' and 'prelabel', say."),
    ] = "training,prelabel",
    burst: Annotated[bool, typer.Option("--burst", help="End when the queues are empty.")] = False,
    end_with_stdin: Annotated[
        bool, typer.Option("--end-with-stdin", help="End when the standard input ends: with the parent process.")
    ] = False,
) -> None:
    """Train on corrections and pre-label tasks, one job after the other, until asked to end.

    Example: LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=... vlm worker
    """
    settings = settings_or_exit()
    from backend.logs import configure_logging
    from training_jobs.worker import QUEUES, run_worker

    names = [name.strip() for name in queues.split(",")]
    if not names or len(set(names)) < len(names) or not set(names) <= set(QUEUES):
        raise typer.BadParameter(
            f"{queues!r} is not one of, or both with a comma: {', '.join(QUEUES)}", param_hint="--queues"
        )
    configure_logging(settings.log_level, settings.log_format, secrets=settings.secrets)
    if end_with_stdin:
        from backend.lifeline import end_with_standard_input

        end_with_standard_input()
    run_worker(settings, queues=names, burst=burst)


@train_app.command("recipe")
def recipe_command() -> None:
    """Print all settings of learning from corrections, as YAML, with what each means.

    Example: vlm train recipe > recipe.yaml; then VLM_TRAIN_RECIPE=recipe.yaml for the worker
    """
    from training_jobs.recipes.config import recipe_yaml

    typer.echo(recipe_yaml(), nl=False)


# The order of `vlm --help`.
app.add_typer(train_app, name="train")
app.add_typer(convert_app, name="convert")
app.add_typer(models_app, name="models")
app.command("evaluate")(evaluate_command)
app.command("serve")(serve_command)
app.command("predict")(predict_command)
app.command("demo")(demo_command)
app.command("check-deployment")(check_deployment_command)
app.command("worker")(worker_command)
app.command("jobs")(jobs_command)
app.command("prelabel")(prelabel_command)
app.add_typer(versions_app, name="versions")
app.command("report")(report_command)
app.command("connect")(connect_command)
app.command("doctor")(doctor_command)
app.command("check-config")(check_config_command)


if __name__ == "__main__":
    main()

"""`vlm`: the commands of the server, the worker and the models.

A composition root: only here may all three packages meet. Each command imports what it needs when it runs, so
that `vlm --help` answers at once and a command for the terminal does not load a web server.

A command ends with exit code 0 only on success. An error that we foresee is one message on stderr and exit
code 1; wrong usage is exit code 2.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from backend.convert_commands import convert_app
from backend.train_commands import evaluate_command, train_app

if TYPE_CHECKING:
    from backend.settings import Settings

app = typer.Typer(
    name="vlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class _Models(TyperGroup):
    """Without a command of its own `vlm models` lists: `vlm models runs` is `vlm models list runs`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


models_app = typer.Typer(cls=_Models, help="Checkpoints: what can be loaded, what is here, how to fetch one.")
app.add_typer(train_app, name="train")
app.add_typer(convert_app, name="convert")
app.add_typer(models_app, name="models")
app.command("evaluate")(evaluate_command)


def main() -> None:
    """Entry point of the console script: runs a command and turns foreseen errors into one message."""
    # Errors are known by their base classes only, so that nothing heavy is imported for them.
    from vlm_core.errors import VLMError

    try:
        app()
    except VLMError as error:
        print(f"vlm: {error}", file=sys.stderr)
        sys.exit(1)


def settings_or_exit(**overrides: object) -> Settings:
    """The settings for a command; wrong ones end the command with all of them listed.

    Args:
        overrides: settings by attribute name, from the command line; None means not given.
    """
    from backend.settings import SettingsError, load_settings

    try:
        return load_settings(**overrides)
    except SettingsError as error:
        print(f"vlm: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


@app.callback()
def _commands() -> None:
    # With a callback `vlm` stays a group of commands, also while there is only one.
    """CLIP and CLIPSeg for Label Studio: images arrive pre-labelled, corrections make the model better."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (VLM_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT, 9090); 0: a free one.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Hub id, directory, or demo (VLM_CHECKPOINT).")] = None,
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Start a training worker too, and end it with the server.")
    ] = False,
) -> None:
    """Serve predictions to Label Studio.

    Example: vlm serve --checkpoint demo --with-worker
    """
    settings = settings_or_exit(host=host, port=port, checkpoint=checkpoint)
    from backend.server import run_server

    raise typer.Exit(run_server(settings, with_worker=with_worker))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="Directory for overlays, masks and predictions.json.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A phrase to mark; 'a | b' are alternatives. Repeatable.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A description to rank. Repeatable.")] = None,
    not_prompt: Annotated[
        list[str] | None, typer.Option(help="A phrase for what no prompt may include. Repeatable.")
    ] = None,
    exemplar: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE:MASK",
            help="A picture of one more thing to mark, and where it is: a mask file, or x0,y0,x1,y1 in px. Several "
            "show the same thing. Repeatable.",
        ),
    ] = None,
    text_weight: Annotated[
        float | None, typer.Option(help="Mix the exemplars into every prompt: so much of its text, 0 to 1.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Sentence with {} for a phrase; several are averaged. Repeatable; clipseg: its nine."),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(help="Find small things in large images through windows so many px wide; auto chooses."),
    ] = None,
    edges: Annotated[
        bool, typer.Option("--edges", help="Pull masks to the image's edges, for things that stand out clearly.")
    ] = False,
    checkpoint: Annotated[str | None, typer.Option(help="Hub id, directory, or demo (VLM_CHECKPOINT).")] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which a pixel is marked, 0 to 1.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 (VLM_DEVICE).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print predictions.json instead of a table.")] = False,
) -> None:
    """Draw masks for phrases and rank descriptions, for image files.

    Example: vlm predict street.jpg --prompt "left player" --tag "a train on a track" --tag "a cat" --out seen/

    Example: vlm predict field.jpg --exemplar other.jpg:sheep-mask.png --tile auto --out seen/
    """
    if tile is not None and tile != "auto" and not tile.isdecimal():
        raise typer.BadParameter(f"--tile {tile} must be auto or a number of pixels")
    settings = settings_or_exit(checkpoint=checkpoint, device=device)
    import vlm_core
    from backend.terminal import print_predictions, progress_bar
    from vlm_core.predict_files import make_prompts, predict_files, read_exemplar
    from vlm_core.prompts import named_templates

    # Before the checkpoint is loaded: what was mistyped is told at once.
    prompts = make_prompts(
        prompt or [],
        not_prompts=not_prompt or [],
        exemplars=[read_exemplar(text) for text in exemplar or []],
        text_weight=text_weight,
        templates=named_templates(template) if template else ("{}",),
    )

    model = vlm_core.load(settings.checkpoint, settings.device, settings.dtype)
    with progress_bar("predicting", len(images)) as advance:
        results = predict_files(
            model,
            images,
            prompts=prompts,
            tags=tag or [],
            out=out,
            threshold=threshold,
            tile="auto" if tile == "auto" else None if tile is None else int(tile),
            edges=edges,
            on_image=lambda _: advance(),
        )
    if json_:
        typer.echo((out / "predictions.json").read_text(), nl=False)
    else:
        print_predictions(results, out)
    raise typer.Exit(1 if any(r.error for r in results) else 0)


@app.command()
def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Do the round trip unattended, print a table, exit 0 on success.")
    ] = False,
    label_studio: Annotated[
        Path | None, typer.Option(help="The label-studio command (default: .venv-label-studio, then PATH).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Label Studio's port (8080; with --check a free one).")
    ] = None,
    backend_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The backend's port (9090; with --check a free one).")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is written (.demo; with --check a new one inside it).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="What is served before anything is learned.")] = "demo",
) -> None:
    """Start Label Studio, a backend and a worker on pictures of coloured shapes; Ctrl-C stops all of it.

    Example: vlm demo --port 8081
    """
    from backend.demo.run import DemoOptions, run_demo

    raise typer.Exit(run_demo(DemoOptions(check, label_studio, port, backend_port, data_dir, checkpoint)))


@app.command("check-deployment")
def check_deployment() -> None:
    """Play the demo's round trip on what runs already: pre-label, correct, learn, serve the better version.

    Reads the settings of the running backend and VLM_BACKEND_URL, which Label Studio and this process must both reach.
    It makes a project of its own. The backend must serve VLM_CHECKPOINT=demo.

    Example: docker compose -f docker/compose.yaml run --rm connect check-deployment
    """
    settings = settings_or_exit()
    from backend.demo.deployment import Deployment
    from backend.demo.run import run_deployment_check
    from backend.parts import connect_queue

    if settings.label_studio_url is None or settings.label_studio_token is None:
        print("vlm: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (Account & Settings)", file=sys.stderr)
        raise typer.Exit(2)
    deployment = Deployment(
        label_studio_url=settings.label_studio_url,
        api_token=settings.label_studio_token,
        backend_url=settings.backend_url or f"http://127.0.0.1:{settings.port}",
        data_dir=settings.data_dir,
        connect_queue=lambda: connect_queue(settings),
        basic_auth=settings.basic_auth,
        webhook_secret=settings.webhook_secret.get_secret_value() if settings.webhook_secret else None,
    )
    raise typer.Exit(run_deployment_check(deployment))


@app.command()
def worker(
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


@app.command()
def jobs(
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


@train_app.command("recipe")
def recipe() -> None:
    """Print all settings of learning from corrections, as YAML, with what each means.

    Example: vlm train recipe > recipe.yaml; then VLM_TRAIN_RECIPE=recipe.yaml for the worker
    """
    from training_jobs.recipes.config import recipe_yaml

    typer.echo(recipe_yaml(), nl=False)


@app.command()
def prelabel(
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


@app.command()
def versions(
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


@app.command()
def connect(
    project: Annotated[
        int, typer.Option(min=0, help="Label Studio's id of the project (see its address); 0: --first-project's.")
    ] = 0,
    first_project: Annotated[
        Path | None,
        typer.Option(help="Without --project: a folder with label-config.xml (and images/, title.txt) to make one of."),
    ] = None,
    backend_url: Annotated[
        str | None,
        typer.Option(help="This backend's address as Label Studio reaches it (VLM_BACKEND_URL, else 127.0.0.1)."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The connection's name (default: the model version, so that scores show).")
    ] = None,
    scores: Annotated[
        bool | None,
        typer.Option(help="Whether scores show in the Data Manager and drive uncertainty sampling (VLM_SHOW_SCORES)."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for Label Studio and the backend to be ready.")
    ] = 0.0,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Connect a Label Studio project to this backend, or repair its connection; can be repeated.

    Reads LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY, BASIC_AUTH_USER, BASIC_AUTH_PASS and VLM_WEBHOOK_SECRET.

    Example: vlm connect --project 1 --backend-url http://127.0.0.1:9090
    """
    if not project and first_project is None:
        raise typer.BadParameter("name the project, or a folder to make one of", param_hint="--project")
    from backend.label_studio.first_project import CONFIG

    if not project and first_project is not None and not (first_project / CONFIG).is_file():
        print(f"vlm: nothing to connect: no --project, and no {CONFIG} in {first_project}", file=sys.stderr)
        return
    settings = settings_or_exit(show_scores=scores)
    from backend.connect_command import ConnectCommandError, connect_when_ready
    from backend.label_studio.connect import report_lines
    from backend.label_studio.errors import LabelStudioError

    say = functools.partial(print, file=sys.stderr, flush=True)
    try:
        report = connect_when_ready(
            settings, project or None, first_project, backend_url=backend_url, title=title, wait_s=wait, say=say
        )
    except ConnectCommandError as error:
        print(f"vlm: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (LabelStudioError, ValueError) as error:
        print(f"vlm: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(dataclasses.asdict(report)) if json_ else "\n".join(report_lines(report)))


@app.command()
def doctor(
    project: Annotated[
        list[int] | None,
        typer.Option(help="A project's number in Label Studio; repeatable. Default: those that are connected here."),
    ] = None,
    backend_url: Annotated[
        str | None, typer.Option(help="This backend as Label Studio reaches it (VLM_BACKEND_URL, else this machine).")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the whole chain, from the disk to Label Studio's webhooks, and say what to do about what is wrong.

    Run it with the settings of the server and beside it. It changes nothing. Exit code 0 only when all is well.

    Example: vlm doctor --project 7
    """
    from backend.doctor.command import examine_all, print_report, settings_findings
    from backend.doctor.findings import Report
    from backend.settings import SettingsError, load_settings

    try:
        report = Report(tuple(examine_all(load_settings(), project or (), backend_url=backend_url)))
    except SettingsError as error:
        report = Report(tuple(settings_findings(str(error))))
    if json_:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    raise typer.Exit(0 if report.healthy else 1)


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(help="The labelling config, XML; - reads it from stdin.")],
    extra_params: Annotated[
        str, typer.Option("--extra-params", help="The connection's extra parameters, a JSON object.")
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what will be predicted for a labelling config, with which phrases, and what is left alone and why.

    A mistake is named with its line and what to do.

    Example: vlm check-config config.xml
    """
    import json

    from backend.label_studio.config import LabelConfigError, parse_label_config
    from backend.label_studio.config_report import error_data, report_data, report_lines
    from backend.label_studio.interactive_config import read_interactive_config

    try:
        xml = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        plan = parse_label_config(xml, extra_params)
        interactive = read_interactive_config(xml, plan)
    except LabelConfigError as error:
        print(f"vlm: {error}", file=sys.stderr)
        if json_:
            typer.echo(json.dumps(error_data(error)))
        raise typer.Exit(1) from None
    except UnicodeDecodeError as error:
        print(f"vlm: {file} is not UTF-8 text ({error})", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"vlm: {file} cannot be read: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(report_data(plan, interactive)) if json_ else "\n".join(report_lines(plan, interactive)))
    raise typer.Exit(0 if plan.controls else 1)


if __name__ == "__main__":
    main()

"""`vlm connect`, `vlm doctor` and `vlm check-config`: projects of Label Studio and the way to them."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.settings import settings_or_exit


def connect_command(
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


def doctor_command(
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


def check_config_command(
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

"""`vlm doctor`: all checks in order, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import httpx
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from backend.doctor import machine, server
from backend.doctor.findings import Check, Finding, Report, Subject, examine
from backend.doctor.label_studio import check_label_studio
from backend.doctor.project import ProjectDoctor
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connection import own_entries
from backend.label_studio.errors import LabelStudioError
from backend.redis_connection import connect_redis
from backend.settings import Settings

_SERVER_TIMEOUT_S = 5.0
_MOST_PROJECTS = 100
"""Label Studio asks each connection of each project while we list them."""

_MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "problem": ("WRONG", "bold red"),
    "not checked": ("?", "yellow"),
}


def examine_all(
    settings: Settings,
    project_ids: Sequence[int] = (),
    *,
    backend_url: str | None = None,
    studio_transport: httpx.BaseTransport | None = None,
    server_transport: httpx.BaseTransport | None = None,
) -> Iterator[Finding]:
    """Make all checks, from this machine outwards.

    Args:
        settings: that the server and the worker run with.
        project_ids: projects to look at; (): those that are connected to this backend.
        backend_url: this backend's address as Label Studio reaches it; None: as the settings say, else this machine.
        studio_transport: what carries requests to Label Studio; for tests.
        server_transport: the same for the server.
    """
    here = "this machine"
    local_url = f"http://127.0.0.1:{settings.port}"
    yield from examine(
        [
            ("settings", here, lambda: machine.check_settings(settings)),
            ("data directory", here, lambda: machine.check_data_dir(settings.data_dir)),
            ("versions", here, lambda: machine.check_versions(settings.data_dir)),
            ("checkpoint", here, lambda: machine.check_checkpoint(settings)),
            ("device", here, lambda: machine.check_device(settings)),
            (
                "redis",
                here,
                lambda: machine.check_redis(
                    lambda: connect_redis(settings, start=False, tries=2), own=settings.redis_url is not None
                ),
            ),
        ]
    )
    # No proxy: it is this machine, or one beside it.
    with httpx.Client(timeout=_SERVER_TIMEOUT_S, transport=server_transport, trust_env=False) as http:
        url = _server_url(settings, http, local_url)
        yield from examine([("server", "server", lambda: server.check_server(settings, http, url))])
        if settings.label_studio_url is None or settings.label_studio_token is None:
            return  # said by `check_settings`
        with LabelStudioClient(
            settings.label_studio_url,
            settings.label_studio_token,
            timeout_s=settings.label_studio_timeout_s,
            transport=studio_transport,
        ) as client:
            findings = list(examine([("address", "Label Studio", lambda: check_label_studio(client))]))
            yield from findings
            if any(finding.check in ("address", "token") and finding.state == "problem" for finding in findings):
                yield Subject("Label Studio").skipped("projects", "not before Label Studio answers and takes the token")
                return
            reached_at = (backend_url or settings.backend_url or local_url).rstrip("/")
            doctor = ProjectDoctor(client, settings, reached_at, http, url)
            yield from examine(_projects(client, doctor, project_ids))


def _server_url(settings: Settings, http: httpx.Client, local_url: str) -> str:
    """Where this machine reaches the server: its own port, else where Label Studio finds it."""
    if settings.backend_url is None:
        return local_url
    try:
        http.get(f"{local_url}/health")
    except httpx.HTTPError:
        return settings.backend_url
    return local_url


def _projects(
    client: LabelStudioClient, doctor: ProjectDoctor, project_ids: Sequence[int]
) -> Iterator[tuple[str, str, Check]]:
    """The checks of the projects, named or found."""

    def check(project_id: int) -> Check:
        return lambda: doctor.examine(project_id)

    chosen = list(project_ids)
    if not chosen:
        try:
            chosen = _connected(client, doctor.backend_url)
        except LabelStudioError as error:
            said = str(error)
            yield (
                "projects",
                "Label Studio",
                lambda: [Subject("Label Studio").problem("projects", said, "name one with --project")],
            )
            return
    if not chosen:
        yield ("projects", "Label Studio", _nothing_connected)
    for project_id in chosen:
        yield "project", f"project {project_id}", check(project_id)


def _connected(client: LabelStudioClient, backend_url: str) -> list[int]:
    found = []
    for number, project in enumerate(client.projects()):
        if number == _MOST_PROJECTS:
            break
        if own_entries(client.ml_backends(int(project["id"])), backend_url):
            found.append(int(project["id"]))
    return found


def _nothing_connected() -> Iterable[Finding]:
    yield Subject("Label Studio").problem(
        "projects",
        "no project is connected to this backend",
        "`vlm connect --project N`, N from the project's address in Label Studio",
    )


def settings_findings(message: str) -> list[Finding]:
    """Settings that cannot be read at all, each as a finding.

    Args:
        message: of the `SettingsError`: a headline, then a line for each.
    """
    here = Subject("this machine")
    lines = [line.strip() for line in message.splitlines()[1:]] or [message]
    return [here.problem("settings", line, "correct the environment variable") for line in lines]


def print_report(report: Report, console: Console | None = None) -> None:
    """A line a finding, the remedy below it, and a last line that says how it went."""
    console = console or Console()
    where = ""
    for finding in report.findings:
        if finding.where != where:
            where = finding.where
            console.print(Text(f"\n{where}", style="bold"))
        mark, style = _MARKS[finding.state]
        line = Text()
        line.append(f"{mark:>7}  ", style=style)
        line.append(f"{finding.check}: ", style="dim")
        line.append(finding.said)
        console.print(line, soft_wrap=False)
        if finding.remedy:
            console.print(Padding(Text(f"-> {finding.remedy}"), (0, 0, 0, 9)))
    wrong = len(report.problems)
    if report.healthy:
        console.print("\nAll is well.")
    elif wrong:
        console.print(f"\n{wrong} {'thing is' if wrong == 1 else 'things are'} wrong.")
    else:
        console.print("\nNothing is wrong so far, but not all could be checked.")

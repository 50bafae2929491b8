"""`vlm serve`, `vlm demo` and `vlm check-deployment`: the processes, and a round trip through them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.settings import settings_or_exit


def serve_command(
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


def demo_command(
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


def check_deployment_command() -> None:
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

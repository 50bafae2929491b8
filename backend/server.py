"""`vlm serve`: uvicorn with our app, and a worker beside it where asked for. Ends cleanly on SIGTERM and Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from backend.app import create_app
from backend.logs import configure_logging
from backend.settings import Settings, child_environment

log = logging.getLogger(__name__)

_BACKLOG = 2048
_SWITCH_S = 0.005
"""After which a thread that computes in Python lets another one run; Python's own 5 ms add up over the handful of times
that an answer has to wait for its turn, as Label Studio's annotators do for `/webhook`."""
_GRACE_S = 10
"""For the worker to give up its job, and for a request beyond the time that it may take."""


def run_server(settings: Settings, *, with_worker: bool = False) -> int:
    """Serve until a signal asks to end.

    Args:
        settings: of the server.
        with_worker: start `vlm worker` as a child, and end it with the server.

    Returns:
        The process's exit code: 0 after a signal, 1 when the address cannot be listened on.
    """
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(
            f"vlm: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            "Choose another with --port (PORT) or --host (VLM_HOST)",
            file=sys.stderr,
        )
        return 1
    configure_logging(settings.log_level, settings.log_format, secrets=settings.secrets)
    sys.setswitchinterval(_SWITCH_S)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,  # ours, set above
        access_log=False,  # `backend.api.logs` writes a line per request, without queries
        server_header=False,
        # Requests under way are answered; a second Ctrl-C ends at once.
        timeout_graceful_shutdown=math.ceil(settings.predict_deadline_s) + _GRACE_S,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    with listener, _signals_end_quietly():
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if settings.host not in ("127.0.0.1", "localhost", "::1") and settings.basic_auth_user is None:
            log.warning("anyone who reaches this port may use it: set BASIC_AUTH_USER and BASIC_AUTH_PASS")
        with _worker(settings) if with_worker else _nothing():
            server.run(sockets=[listener])
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: so a taken port is known before anything is started."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Already now: whoever connects between our saying so and the server's start is answered, not refused.
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Keep our own clean-up in charge: uvicorn ends on a signal and then raises it again for the process."""

    def ignore(number: int, frame: FrameType | None) -> None:
        log.info("ending on %s", signal.Signals(number).name)

    former = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    """`vlm worker` as a child with the same settings; its end is logged, and it ends with the server.

    In order while this process can see to it, and by `backend.lifeline` when it is killed.
    """
    ending = threading.Event()
    # A group of its own: Ctrl-C in a terminal reaches the server alone, which then ends the worker in order.
    process = subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "worker", "--end-with-stdin"],
        env=child_environment(settings),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def watch() -> None:
        code = process.wait()
        if not ending.is_set():
            log.error("the worker has ended by itself with code %s: nothing trains until `vlm worker` runs", code)

    threading.Thread(target=watch, name="watch-worker", daemon=True).start()
    try:
        yield
    finally:
        ending.set()
        _end(process)
        if process.stdin is not None:
            process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the worker: asked twice (once it would finish its job first), then by force."""
    for _ in range(2):
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_GRACE_S / 2)
            return
        except subprocess.TimeoutExpired:
            continue
    log.warning("the worker did not end and is killed; its job will be tried again")
    process.kill()
    process.wait()

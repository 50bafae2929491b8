"""Whether the server or the worker of this container is well: `python -m backend.health [--worker]`.

For a container's health check, which runs it every few seconds: so it imports no model and no web server, and ends
with 0 or with 1 and one line. The server is well when it answers `/health`; whether it has a model is another question,
which `/setup` answers. A worker is well when it is signed on in Redis under this machine's name.
"""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request

from backend.settings import load_settings

_TIMEOUT_S = 4.0


def server_problem(port: int) -> str | None:
    """What is wrong with the server on this machine's port; None: nothing."""
    try:
        # No proxy: it is this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=_TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"/health answers {answer.status}"
    except (urllib.error.URLError, OSError) as error:
        return f"no answer on port {port}: {error}"


def worker_problem(hostname: str) -> str | None:
    """What is wrong with the worker of this machine; None: nothing."""
    from rq import Worker

    from backend.redis_connection import connect_redis
    from backend.redis_server import RedisUnavailableError

    try:
        connection = connect_redis(load_settings(), start=False, timeout_s=_TIMEOUT_S, tries=1)
        # A worker's entry lives a few minutes and is renewed; a dead one's is gone.
        names = {worker.hostname for worker in Worker.all(connection=connection)}
    except RedisUnavailableError as error:
        return str(error)
    return None if hostname in names else f"no worker of {hostname} is signed on, of {len(names)} workers"


def main() -> int:
    """Exit code: 0 well, 1 not."""
    worker = "--worker" in sys.argv[1:]
    problem = worker_problem(socket.gethostname()) if worker else server_problem(load_settings().port)
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())

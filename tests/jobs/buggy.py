"""`vlm` with bugs that quote what was sent, and libraries that warn of whole addresses: `python -m tests.jobs.buggy`.

What tests/jobs/test_secrets.py runs; `MARK` is what must be in no line.
"""

from __future__ import annotations

import logging
import os
from typing import Any

MARK = "Zq7"
PROJECT = 8
"""Where the worker has its bug."""

LIBRARIES = ("httpx", "httpcore.connection", "urllib3.connectionpool", "asyncio", "rq.worker", "uvicorn.error", "x.y")


def main() -> None:
    """Put the bugs in, then be `vlm`."""
    import backend.logs
    import training_jobs.training as training
    from backend.api.handlers import Handlers
    from backend.cli import main as vlm

    configure, train = backend.logs.configure_logging, training.train_version

    def configure_and_warn(*args: Any, **kwargs: Any) -> None:
        configure(*args, **kwargs)
        for name in LIBRARIES:
            log = logging.getLogger(name)
            log.debug("debug of %s: headers %s", name, {"authorization": f"Token {MARK}-of-a-library"})
            log.info("info of %s: https://bucket/a.png?X-Amz-Signature=%s-of-a-library", name, MARK)
            log.warning("warning of %s: /storage/a.png?X-Amz-Signature=%s-of-a-library", name, MARK)
            log.warning("the key is %s", os.environ.get("LABEL_STUDIO_API_KEY", ""))

    def versions(self: Handlers, project: int | None) -> Any:
        raise KeyError(f"{MARK}-quoted-by-a-bug")

    def train_version(project_id: int, *args: Any, **kwargs: Any) -> Any:
        if project_id == PROJECT:
            raise ValueError(f"{MARK}-quoted-by-a-bug")
        return train(project_id, *args, **kwargs)

    backend.logs.configure_logging = configure_and_warn
    training.train_version = train_version
    Handlers.versions = versions  # type: ignore[method-assign]
    vlm()


if __name__ == "__main__":
    main()

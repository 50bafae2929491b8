"""How processes log: one line per event on stderr, and no library may log addresses."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

_LOUD = (
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
    "urllib3",
    "requests",
    "huggingface_hub",
    "filelock",
    "PIL",
    "asyncio",
    "multipart",
)
"""Libraries that log every request with its whole URL, signatures included, or every chunk of a file."""


def configure_logging(level: str) -> None:
    """Set up logging for a process; called by commands only.

    Args:
        level: as in `LOG_LEVEL`. Libraries that log addresses stay at WARNING whatever it is.
    """
    logging.basicConfig(format=FORMAT)
    logging.getLogger().setLevel(level)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)

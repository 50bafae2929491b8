"""A child process that ends when its parent does, `kill -9` of the parent included.

The parent holds the writing end of a pipe that is the child's standard input, and never writes. However the parent
ends, the kernel closes that end, and the child asks itself to end as SIGTERM would. Works wherever there are pipes,
which Linux's parent-death signal does not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_standard_input() -> None:
    """From now on, send this process SIGTERM when its standard input ends; what comes there until then is dropped."""
    descriptor = sys.stdin.fileno()
    threading.Thread(target=_wait_for_the_end, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait_for_the_end(descriptor: int) -> None:
    # Not through `sys.stdin`: its lock, held here while reading, would stay locked for ever in a forked child.
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

"""Ends the demo's processes when the demo cannot do it any more.

    python -m backend.demo.guardian      reads "+PID" and "-PID" lines until its input ends

The supervisor holds the other end of this process's standard input. However the supervisor ends, `kill -9`
included, the kernel closes that end, and every process still on the list is ended with all its descendants.
A pipe is used rather than Linux's parent-death signal: it works elsewhere too, reaches grandchildren that
moved into a session of their own (as RQ's work horses do), and can insist.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable

import psutil


def with_descendants(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes among `roots` that still run, and everything that descends from them."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            # psutil knows a process by pid and start time: a pid that was given away again counts as gone.
            if root.is_running():
                found[root.pid] = root
                found.update({child.pid: child for child in root.children(recursive=True)})
    return list(found.values())


def end_trees(roots: Iterable[psutil.Process], *, grace_s: float) -> None:
    """End processes with all their descendants: ask the roots, wait, then kill what is left.

    Args:
        roots: processes that need not be children of this one, and may be gone already.
        grace_s: seconds that they have to end by themselves.
    """
    asked = list(roots)
    # Taken before anybody is asked to end: an orphan is nobody's descendant.
    everything = with_descendants(asked)
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(everything, timeout=grace_s)
    for process in with_descendants(left):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5.0)


def main() -> None:
    """Keep the list until the input ends, then end what is on it."""
    # Ctrl-C and a closing terminal are the supervisor's business; this process must outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, psutil.Process] = {}
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            with contextlib.suppress(psutil.NoSuchProcess):
                watched[pid] = psutil.Process(pid)
        else:
            watched.pop(pid, None)
    end_trees(watched.values(), grace_s=10.0)


if __name__ == "__main__":
    main()

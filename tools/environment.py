"""Create a virtual environment, or find that it is already what the project asks for.

    python3 tools/environment.py .venv -- --editable '.[dev]' --constraint constraints.txt

Everything after `--` goes to `pip install`. A stamp in the environment holds a hash of those arguments, of the
files that decide what they install, and of the interpreter: while it matches, nothing is run and the command
answers in milliseconds. It is written last, so an interrupted installation is taken up again. A lock beside the
environment lets a second `make` wait for the first, and find its work done.

Needs the standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

OLDEST = (3, 11)
INPUTS = ("pyproject.toml", "constraints.txt", "requirements-label-studio.txt")
"""Files that decide what is installed; an environment depends on those that its arguments name."""


def wanted(arguments: Sequence[str], root: Path) -> str:
    """Hash of all that decides what an installation with these arguments holds."""
    digest = hashlib.sha256(repr((sys.version_info[:3], list(arguments))).encode())
    editable = any(argument in ("-e", "--editable") for argument in arguments)
    for name in INPUTS:
        if name in arguments or (name == "pyproject.toml" and editable):
            digest.update((root / name).read_bytes())
    return digest.hexdigest()


def ensure(environment: Path, arguments: Sequence[str], root: Path) -> bool:
    """Make the environment what it should be.

    Returns:
        Whether anything had to be installed.

    Raises:
        SystemExit: the interpreter is too old, has no `venv`, or pip failed; the message says what to do.
    """
    expected = wanted(arguments, root)
    if _is_ready(environment, expected):
        return False
    with _locked(environment):
        if _is_ready(environment, expected):
            return False
        _install(environment, arguments, root, expected)
    return True


def _is_ready(environment: Path, expected: str) -> bool:
    """Whether the environment was finished for exactly these arguments and files."""
    stamp = environment / "installed.sha256"
    python = environment / "bin" / "python"
    return stamp.is_file() and python.exists() and stamp.read_text().strip() == expected


@contextlib.contextmanager
def _locked(environment: Path) -> Iterator[None]:
    """Hold the environment's lock; the kernel frees it however its holder ends."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    # Beside the environment, which is emptied when it is made anew.
    with open(environment.parent / f"{environment.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another make that prepares {environment}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(environment: Path, arguments: Sequence[str], root: Path, expected: str) -> None:
    stamp = environment / "installed.sha256"
    python = environment / "bin" / "python"
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    if not _runs(python):
        print(f"Creating {environment} with Python {sys.version.split()[0]}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)]).returncode:
            remedy = "see above. On Debian and Ubuntu: apt install python3-venv"
            raise SystemExit(f"{sys.executable} could not create {environment}: {remedy}")
    print(f"Installing into {environment} (the first time takes minutes and some GB)", flush=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]  # errors only
    if subprocess.run([*pip, *arguments], cwd=root).returncode:
        raise SystemExit(f"pip could not install into {environment}: see above. Mend it and run make again.")
    stamp.write_text(expected + "\n")
    print(f"{environment} is ready after {time.monotonic() - started:.0f} s", flush=True)


def _runs(python: Path) -> bool:
    """Whether the environment's interpreter starts and is the one that is asked for."""
    if not python.exists():
        return False
    question = [str(python), "-c", "import sys; print(sys.version_info[:2])"]
    answer = subprocess.run(question, capture_output=True, text=True)
    return answer.returncode == 0 and answer.stdout.strip() == str(tuple(sys.version_info[:2]))


def main() -> None:
    """Read the command line and make the environment."""
    parser = argparse.ArgumentParser(description="Create or reuse a virtual environment.")
    parser.add_argument("environment", type=Path)
    parser.add_argument("pip_arguments", nargs="+", help="for `pip install`, after --")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        have, need = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST))
        raise SystemExit(f"{sys.executable} is Python {have}; {need} or newer is needed: make PYTHON=/path/to/python3")
    ensure(options.environment, options.pip_arguments, Path(__file__).resolve().parent.parent)


if __name__ == "__main__":
    main()

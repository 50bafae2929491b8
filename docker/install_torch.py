"""Install torch and torchvision while an image is built: `python3 install_torch.py [INDEX]`.

With INDEX (a Python package index such as PyTorch's for CPUs) they come from there, so that an image for CPUs carries
no CUDA. Where it cannot be reached, and without INDEX, they come from the ordinary index, which has the CUDA builds:
larger, and right everywhere. Versions are those of constraints.txt.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request

CONSTRAINTS = "constraints.txt"
_TIMEOUT_S = 20


def reachable(index: str) -> bool:
    """Whether the index answers for torch."""
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=_TIMEOUT_S) as answer:
            return 200 <= answer.status < 300
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"NOTE: {index} cannot be reached ({error}): torch comes from the ordinary index, with CUDA", flush=True)
        return False


def main() -> None:
    """Install; ends with pip's exit code."""
    index = sys.argv[1] if len(sys.argv) > 1 else ""
    command = [sys.executable, "-m", "pip", "install", "torch", "torchvision", "--constraint", CONSTRAINTS]
    if index and reachable(index):
        # Beside the ordinary index, for what torch needs: its "2.15.0+cpu" counts as newer than "2.15.0".
        command += ["--extra-index-url", index]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()

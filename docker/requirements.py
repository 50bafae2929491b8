"""Print the dependencies that a pyproject.toml names, one a line: `python3 requirements.py pyproject.toml`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

for requirement in tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]["dependencies"]:
    print(requirement)

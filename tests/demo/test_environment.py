"""`tools/environment.py`: made once, also by two that come together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "environment.py"


def test_two_at_once_make_one_environment(tmp_path: Path) -> None:
    # Installs nothing from anywhere: a package of one file that lies here, built by nobody.
    wheel = tmp_path / "nothing-1.0-py3-none-any.whl"
    code = (
        "import sys, zipfile\n"
        "with zipfile.ZipFile(sys.argv[1], 'w') as z:\n"
        "    z.writestr('nothing.py', '')\n"
        "    z.writestr('nothing-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: nothing\\nVersion: 1.0\\n')\n"
        "    z.writestr('nothing-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n"
        "Tag: py3-none-any\\n')\n"
        "    z.writestr('nothing-1.0.dist-info/RECORD', '')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(wheel)], check=True)
    environment = tmp_path / "environment"
    command = [sys.executable, str(TOOL), str(environment), "--", "--no-index", "--no-deps", str(wheel)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("is ready after") for text in said) == [0, 1]  # one worked, one waited
    assert subprocess.run([environment / "bin" / "python", "-c", "import nothing"]).returncode == 0
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""

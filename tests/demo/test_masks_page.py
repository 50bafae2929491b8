"""The code of docs/masks.md runs, and gives what the page says that it gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "masks.md").read_text(encoding="utf-8")


def alike(value: Any, told: Any) -> bool:
    """The same, up to the few pixels at an edge that another processor's rounding may add or take."""
    if isinstance(value, list | tuple):
        return type(value) is type(told) and len(value) == len(told) and all(map(alike, value, told))
    return abs(value - told) <= (0.02 * abs(told) + 1 if abs(told) > 10 else 0)


def run(source: str, names: dict[str, Any]) -> int:
    """Run code; each line `expression  # -> value` must have that value. Gives the number of such lines."""
    lines, checked = source.splitlines(), 0
    for node in ast.parse(source).body:
        told = re.search(r"# -> (.+)$", lines[(node.end_lineno or 1) - 1])
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), "docs/masks.md", "eval"), names)
            if told:
                assert alike(value, ast.literal_eval(told[1])), f"{ast.unparse(node)} is {value!r}"
                checked += 1
        else:
            assert not told, f"{told[0]} stands beside no expression"
            exec(compile(ast.Module([node], []), "docs/masks.md", "exec"), names)
    return checked


def test_the_page_is_true() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    assert sum(run(block, names) for block in blocks) >= 6
    # what the text says of the example
    assert len(names["parts"]) > 1
    assert any(outline.holes for outline in names["outlines"])
    assert names["image"].size == (names["mask"].size_hw[1], names["mask"].size_hw[0])


@pytest.mark.parametrize("source", ["1 + 1  # -> 3", "x = 2  # -> 2", "[1,\n2]  # -> [1]"])
def test_a_wrong_value_would_be_noticed(source: str) -> None:
    with pytest.raises(AssertionError):
        run(source, {})

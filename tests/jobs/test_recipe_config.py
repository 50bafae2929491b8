from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli import app
from training_jobs.errors import CannotTrainError
from training_jobs.recipes.config import read_recipe, recipe_yaml
from training_jobs.recipes.finetune_decoder import FinetuneConfig


def test_nothing_given_is_the_defaults() -> None:
    assert read_recipe(None) == read_recipe("  ") == FinetuneConfig()


def test_what_is_printed_reads_back_and_says_what_each_setting_means() -> None:
    changed = FinetuneConfig(steps=5, interpolations=(0.25,), threads=3)
    assert read_recipe(recipe_yaml(changed)) == changed
    printed = CliRunner().invoke(app, ["train", "recipe"])
    assert printed.exit_code == 0
    assert read_recipe(printed.output) == FinetuneConfig()
    lines = printed.output.splitlines()
    for name in FinetuneConfig.model_fields:
        (row,) = [number for number, line in enumerate(lines) if line.startswith(f"{name}:")]
        assert lines[row - 1].startswith("# "), f"{name} is not explained"


def test_a_file_and_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 7\nthreads: 4\n")
    expected = FinetuneConfig(steps=7, threads=4)
    assert read_recipe(str(path)) == expected
    assert read_recipe('{"steps": 7, "threads": 4}') == expected
    assert read_recipe("{steps: 7, threads: 4}") == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{steps: 0, stepz: 1}", r"VLM_TRAIN_RECIPE: steps: .*; stepz: .*; `vlm train recipe`"),
        ("[1, 2]", "not settings by name"),
        ("{a: [}", "is not YAML"),
        ("missing.yaml", "missing.yaml cannot be read"),
        ("learning_rate: .nan", "learning_rate"),
    ],
)
def test_mistakes_are_named_all_at_once(given: str, said: str) -> None:
    with pytest.raises(CannotTrainError, match=said):
        read_recipe(given)

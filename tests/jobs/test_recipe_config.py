from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from backend.cli import app
from training_jobs.errors import CannotTrainError
from training_jobs.recipes.config import RecipeConfig, read_recipe, recipe_yaml
from training_jobs.recipes.finetune_decoder import FinetuneConfig
from training_jobs.recipes.tune_conditions import ConditionsConfig


def test_nothing_given_is_the_defaults() -> None:
    assert read_recipe(None) == read_recipe("  ") == RecipeConfig()


def test_what_is_printed_reads_back_and_says_what_each_setting_means() -> None:
    changed = RecipeConfig(folds=5, shares=(0.25,), decoder=FinetuneConfig(threads=3))
    assert read_recipe(recipe_yaml(changed)) == changed
    printed = CliRunner().invoke(app, ["train", "recipe"])
    assert printed.exit_code == 0
    assert read_recipe(printed.output) == RecipeConfig()
    lines = printed.output.splitlines()
    parts = {"": RecipeConfig, "conditions": ConditionsConfig, "decoder": FinetuneConfig}
    part = ""
    explained: set[tuple[str, str]] = set()
    for before, line in itertools.pairwise(lines):
        name = line.partition(":")[0]
        if name in parts:
            part = name
        if not name.startswith("#") and before.strip().startswith("# "):
            explained.add((part, name.strip()))
    wanted = {(part, name) for part, model in parts.items() for name in model.model_fields if name not in parts}
    assert wanted - explained == set()


def test_a_file_and_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("decoder_from: 100\ndecoder:\n  steps: 7\n")
    expected = RecipeConfig(decoder_from=100, decoder=FinetuneConfig(steps=7))
    assert read_recipe(str(path)) == expected
    assert read_recipe('{"decoder_from": 100, "decoder": {"steps": 7}}') == expected
    assert read_recipe("{decoder_from: 100, decoder: {steps: 7}}") == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "{decoder: {steps: 0, stepz: 1}, folds: 1}",
            r"folds: .*; decoder.steps: .*; decoder.stepz: .*vlm train recipe",
        ),
        ("{choose_from: 4, folds: 5}", "choose_from 4 images cannot make 5 folds"),
        ("[1, 2]", "not settings by name"),
        ("{a: [}", "is not YAML"),
        ("missing.yaml", "missing.yaml cannot be read"),
        ("decoder: {learning_rate: .nan}", "decoder.learning_rate"),
    ],
)
def test_mistakes_are_named_all_at_once(given: str, said: str) -> None:
    with pytest.raises(CannotTrainError, match=said):
        read_recipe(given)


def test_the_printed_recipe_is_plain_yaml() -> None:
    assert yaml.safe_load(recipe_yaml())["shares"] == [0.5, 1.0]

"""What the README tells people to type, set and open exists."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from backend import cli
from backend.commands.groups import ListByDefault
from backend.label_studio.config import parse_label_config
from backend.settings import Settings, variable_name

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[str]:
    """Command lines for `program`, from the shell blocks and from inline code."""
    lines = [line.strip().partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return [line for line in [*lines, *inline] if re.match(rf"{program}\s+\S", line)]


def parse(line: str) -> None:
    """Parse a `vlm` command line as the program does, without running it."""
    command: Any = typer.main.get_command(cli.app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        if not words:
            return  # a group that is only named, like `vlm train`
        if isinstance(command, ListByDefault) and words[0] not in command.commands:
            words.insert(0, "list")
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}: {line}"
        command = command.commands[name]
    if words not in ([], ["--help"]):  # a command that is only named, or its help
        command.make_context(command.name, words)


def test_there_are_commands_to_check() -> None:
    assert len(blocks("sh")) >= 6
    assert len(commands("vlm")) >= 10
    assert len(commands("make")) >= 5


@pytest.mark.parametrize("line", sorted(set(commands("vlm"))))
def test_every_vlm_command_parses(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["vlm serv", "vlm serve --nonsense", "vlm connect --project seven"])
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"no command|No such option|valid integer"):
        parse(line)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", makefile, re.MULTILINE)) | {"CHECK"}
    for line in commands("make"):
        words = line.split()[1:]
        assert {word for word in words if "=" not in word} <= targets, line
        assert {word.partition("=")[0] for word in words if "=" in word} <= variables, line


def test_every_file_that_is_linked_exists() -> None:
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(linked) >= 6
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_pictures_stay_small() -> None:
    folder = ROOT / "docs" / "pictures"
    pictures = sorted(folder.rglob("*.png"))
    pages = README + "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    shown = set(re.findall(r"\]\((?:docs/)?pictures/([^)]+)\)", pages))
    assert shown == {path.relative_to(folder).as_posix() for path in pictures}
    assert [path.name for path in pictures if path.stat().st_size > 400_000] == []


def test_make_pictures_makes_every_picture() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^pictures:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"-m ([\w.]+)", recipe)]
    makers = [ROOT / name for name in [*modules, *re.findall(r"[\w/]+\.py", recipe)]]
    folder = ROOT / "docs" / "pictures"
    for picture in folder.rglob("*.png"):
        if picture.parent == folder:
            naming = [maker.name for maker in makers if f'"{picture.name}"' in maker.read_text()]
        else:  # named by what they show, in a table of the module that the folder is named after
            (maker,) = (maker for maker in makers if maker.stem.removeprefix("test_") == picture.parent.name)
            naming = [maker.name] if f'"{picture.stem}"' in maker.read_text() else []
        assert len(naming) == 1, f"{picture.name} is named by {naming or 'none'} of what make pictures runs"


@pytest.mark.parametrize("maker", ["tiles", "exemplars"])
def test_a_maker_of_pictures_in_the_benchmarks_starts(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "benchmarks" / f"{maker}.py"
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds to it
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0


def test_the_labelling_config_is_understood() -> None:
    (config,) = blocks("xml")
    brush, choices = parse_label_config(config).controls
    assert brush.threshold == 0.4
    assert {label.label: label.prompts for label in brush.labels} == {
        "Player": ("player in white", "football player"),
        "Ball": ("Ball",),
    }
    assert [label.label for label in choices.labels] == ["a match", "a training"]


def test_the_settings_and_their_defaults_are_told_truly() -> None:
    known = {variable_name(name): field for name, field in Settings.model_fields.items()}
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|([^|]*)\|", README, re.MULTILINE)
    assert len(rows) >= 8
    for names, defaults in rows:
        variables = re.findall(r"`([A-Z_]+)`", names)
        told = re.findall(r"`([^`]+)`", defaults)
        for index, variable in enumerate(variables):
            default = known[variable].default
            value = told[min(index, len(told) - 1)] if told else "None"
            assert value == (str(default).lower() if isinstance(default, bool) else str(default)), variable

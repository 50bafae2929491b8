"""A first project from a folder: so that a new installation shows predictions before anyone has clicked.

The folder holds `label-config.xml`, and may hold `title.txt` and `images/`. The project is known by its title, so doing
it again makes no second one: it only uploads images whose names are not there yet.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError, parse_label_config

CONFIG, TITLE, IMAGES = "label-config.xml", "title.txt", "images"
DEFAULT_TITLE = "First project"
_LONGEST_TITLE = 50
"""Label Studio takes no longer one."""


class FirstProjectError(ValueError):
    """The folder cannot become a project; the message names the file and the remedy."""


def ensure_first_project(client: LabelStudioClient, folder: Path, say: Callable[[str], None]) -> int:
    """Find or make the project of a folder, and upload its images.

    Args:
        client: who may make projects.
        folder: see the module.
        say: prints a line for the user.

    Returns:
        The project's id.

    Raises:
        FirstProjectError: the folder has no labelling config, one that nothing can be predicted for, or a title
            that Label Studio does not take.
        LabelStudioError: a failed call.
    """
    label_config, title = _label_config(folder), _title(folder)
    found = next((int(item["id"]) for item in client.projects() if item.get("title") == title), None)
    if found is None:
        found = int(client.create_project(title, label_config)["id"])
        say(f'made the project "{title}" ({found})')
    images = list(_images(folder / IMAGES))
    if images:
        there = {_name_of(str(value)) for task in client.tasks(found) for value in task["data"].values()}
        missing = [path for path in images if stored_name(path.name) not in there]
        for path in missing:
            client.upload_file(found, path.name, path.read_bytes(), mimetypes.guess_type(path.name)[0] or "")
        say(f"uploaded {len(missing)} of {len(images)} images" if missing else f"all {len(images)} images are there")
    return found


def stored_name(name: str) -> str:
    """How Label Studio writes an uploaded file's name: spaces as "_", other marks left out (Django's rule)."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _name_of(address: str) -> str:
    """ "/data/upload/3/1a2b3c4d-m%C3%BCll.png" -> "müll.png"."""
    return unquote(PurePosixPath(address).name).partition("-")[2]


def _label_config(folder: Path) -> str:
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
        plan = parse_label_config(text)
    except OSError as error:
        raise FirstProjectError(f"{path}: {error.strerror}. Put the project's labelling config there") from None
    except (LabelConfigError, UnicodeDecodeError) as error:
        raise FirstProjectError(f"{path}: {error}") from None
    if not plan.controls:
        raise FirstProjectError(f"{path} has nothing to predict for: `vlm check-config` says why")
    return text


def _title(folder: Path) -> str:
    path = folder / TITLE
    title = (path.read_text(encoding="utf-8").strip() if path.is_file() else "") or DEFAULT_TITLE
    if len(title) > _LONGEST_TITLE or "\n" in title:
        raise FirstProjectError(f"{path}: a title is one line of at most {_LONGEST_TITLE} characters")
    return title


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
            yield path

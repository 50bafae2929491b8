"""What commands draw on a terminal: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vlm_core.predict_files import FileResult


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, so that stdout stays clean for what is piped; yields a function that advances it."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def print_predictions(results: Sequence[FileResult], out: Path) -> None:
    """One row a prompt and a tag of each image."""
    table = Table()
    for column in ("image", "asked", "score", "area", "file"):
        table.add_column(column, justify="right" if column in ("score", "area") else "left", overflow="fold")
    for result in results:
        name = _plain(Path(result.image).name)
        if result.error:
            table.add_row(name, "", "", "", _plain(f"failed: {result.error}"))
            continue
        for prompt in result.prompts:
            found = f"{prompt.area:.1%}" if prompt.box_xyxy else "nothing"
            table.add_row(name, _plain(prompt.prompt), f"{prompt.score:.2f}", found, _plain(prompt.mask))
        for rank, tag in enumerate(result.tags, start=1):
            table.add_row(name, _plain(tag.tag), f"{tag.probability:.2f}", "", f"tag, rank {rank}")
        table.add_section()
    console = Console()
    console.print(table)
    console.print(_plain(f"Overlays, masks and predictions.json are in {out}"))


def _plain(text: str) -> Text:
    """A user's text as it is: rich would read [brackets] as markup, and bytes of a name that are no UTF-8 cannot be
    printed."""
    return Text(text.encode("utf-8", "replace").decode("utf-8"))

"""A progress bar for people, nothing for scripts."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Steps done, the last loss, time gone and time left."""

    def __init__(self, title: str, total: int, done: int = 0, *, quiet: bool = False) -> None:
        """Prepare a bar of `total` steps of which `done` are done; `quiet` shows nothing."""
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=quiet,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, loss="")

    def __enter__(self) -> Progress:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal."""
        self._bar.stop()

    def advance(self, *, loss: float | None = None) -> None:
        """One more step is done."""
        self._bar.update(self._task, advance=1, loss="" if loss is None else f"loss {loss:.4f}")

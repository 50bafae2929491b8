"""Rows of the tables that commands draw."""

from __future__ import annotations

from datetime import datetime

from rich.table import Table
from rich.text import Text


def add_row(table: Table, *cells: object) -> None:
    """Add a row as it is: names and reasons may hold what rich would take for markup, like "[/red]"."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def local_time(value: str | None) -> str:
    """An ISO time as this machine's clock shows it; "" for None."""
    return "" if value is None else datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")

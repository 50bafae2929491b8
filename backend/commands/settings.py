"""The settings of a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from backend.settings import Settings


def settings_or_exit(**overrides: object) -> Settings:
    """The settings for a command; wrong ones end the command with all of them listed.

    Args:
        overrides: settings by attribute name, from the command line; None means not given.
    """
    from backend.settings import SettingsError, load_settings

    try:
        return load_settings(**overrides)
    except SettingsError as error:
        print(f"vlm: {error}", file=sys.stderr)
        raise typer.Exit(2) from None

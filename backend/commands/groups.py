"""Commands that have further commands below them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class ListByDefault(TyperGroup):
    """Without a command of its own it lists: `vlm models runs` is `vlm models list runs`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put "list" before what names no command."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

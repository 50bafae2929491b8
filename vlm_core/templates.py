"""Texts with a place for a phrase or a tag, such as "a photo of a {}."."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_core.errors import InputError


def check_templates(template: str | Sequence[str]) -> tuple[str, ...]:
    """Templates as a tuple.

    Raises:
        InputError: none, or one that has not exactly one `{}`.
    """
    templates = (template,) if isinstance(template, str) else tuple(template)
    for text in templates:
        if not isinstance(text, str) or text.count("{}") != 1:
            raise InputError(f'a template needs one {{}} for the words, as in "a photo of a {{}}.", got {text!r}')
    if not templates:
        raise InputError('at least one template is needed; "{}" is the words alone')
    return templates


def fill_template(template: str, words: str) -> str:
    """The template with the words in the place of its `{}`; other braces stay as they are."""
    return template.replace("{}", words)

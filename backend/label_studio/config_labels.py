"""The labels of one control tag, each with the phrases that stand for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from backend.label_studio.config_attributes import data_field, label_flag, unread_of_label, where
from backend.label_studio.config_xml import LabelConfigError, Tag
from backend.label_studio.prediction_plan import LabelPrompt

Note = Callable[[str], None]
"""Takes a reason why something of the control is left alone."""

PATH_SEPARATOR = " / "

_OF_LABELS = frozenset({"prompt", "not_prompt", "predicted_values", "model_prompt_from", "model_skip"})
_OF_CHOICES = _OF_LABELS - {"not_prompt"}


def read_labels(control: Tag, *, phrase_field: str | None, note: Note) -> tuple[LabelPrompt, ...]:
    """The `Label` tags of a control, wherever in it they stand, but not those of a control inside it.

    Args:
        control: a tag that holds labels.
        phrase_field: field of the task's data for all labels without a phrase of their own.
        note: takes what is left alone.

    Raises:
        LabelConfigError: a label twice with other phrases, or an attribute that cannot be read.
    """
    tags = [tag for tag in control.walk() if tag.kind == "label" and _owner(tag) is control]
    return _read(control, tags, _OF_LABELS, phrase_field, note)


def read_choices(control: Tag, *, note: Note) -> tuple[LabelPrompt, ...]:
    """The `Choice` tags of a `Choices`; those inside another one are not shown by the editor.

    Raises:
        LabelConfigError: see `read_labels`.
    """
    tags = [
        tag for tag in control.walk() if tag.kind == "choice" and _owner(tag) is control and not tag.is_inside("choice")
    ]
    return _read(control, tags, _OF_CHOICES, None, note)


def read_phrases(control: Tag) -> tuple[LabelPrompt, ...]:
    """The phrases that a control tag itself names, each a label of its own; () where it names none.

    Raises:
        LabelConfigError: the attribute holds no phrase.
    """
    own = _own_phrases(control, "red car") or ()
    return tuple(LabelPrompt(phrase, (phrase,), phrase) for phrase in own)


def read_taxonomy(control: Tag, *, note: Note) -> tuple[LabelPrompt, ...]:
    """The leaves of a `Taxonomy`, with their paths.

    A leaf's phrase is its value; where several leaves have that value ("other"), the values of its path, joined.

    Args:
        control: the tag.
        note: takes what is left alone.

    Raises:
        LabelConfigError: two items with one path, or an attribute that cannot be read.
    """
    leaves: list[LabelPrompt] = []
    plain: list[bool] = []
    paths: list[tuple[str, ...]] = []

    def visit(parent: Tag, path: tuple[str, ...], values: tuple[str, ...]) -> None:
        seen: dict[str, Tag] = {}
        for tag in (child for child in parent.children if child.kind == "choice"):
            value, name = _names(tag)
            if not name.strip():
                note(f"its <{tag.name}> in line {tag.line} has no value")
                continue
            here = (*path, name)
            if name in seen:
                if (seen[name].get("value") or "") == (tag.get("value") or ""):
                    # The editor shows the first of them only.
                    note(f'its item "{PATH_SEPARATOR.join(here)}" in line {tag.line} is there already')
                    continue
                raise _twice(tag, PATH_SEPARATOR.join(here), control, seen[name])
            seen[name] = tag
            if label_flag(tag, "model_skip"):
                note(f'its item "{PATH_SEPARATOR.join(here)}" has model_skip set')
                continue
            is_leaf = not any(child.kind == "choice" for child in tag.children)
            for reason in unread_of_label(tag, _OF_CHOICES if is_leaf else {"model_skip"}):
                note(reason)
            if not is_leaf:
                visit(tag, here, (*values, value))
                continue
            leaf = _label(tag, PATH_SEPARATOR.join(here), value, None)
            leaves.append(replace(leaf, path=here))
            plain.append(_own_phrases(tag, value) is None)
            paths.append((*values, value))

    visit(control, (), ())
    alike = Counter(leaf.prompts for leaf, is_plain in zip(leaves, plain, strict=True) if is_plain)
    return tuple(
        replace(leaf, prompts=(" ".join(" ".join(path).split()),)) if is_plain and alike[leaf.prompts] > 1 else leaf
        for leaf, is_plain, path in zip(leaves, plain, paths, strict=True)
    )


def _read(
    control: Tag, tags: list[Tag], known: frozenset[str], phrase_field: str | None, note: Note
) -> tuple[LabelPrompt, ...]:
    labels: list[LabelPrompt] = []
    taken: dict[str, tuple[Tag, LabelPrompt]] = {}
    for tag in tags:
        value, name = _names(tag)
        if not name.strip():
            note(f"its <{tag.name}> in line {tag.line} has no value")
            continue
        label = _label(tag, name, value, phrase_field)
        if name in taken:
            first, same = taken[name]
            if replace(same, value=label.value) != label:
                raise _twice(tag, name, control, first)
            note(f'its label "{name}" in line {tag.line} is there already')
            continue
        taken[name] = (tag, label)
        if label_flag(tag, "model_skip"):
            note(f'its label "{name}" has model_skip set')
            continue
        for reason in unread_of_label(tag, known):
            note(reason)
        labels.append(label if "not_prompt" in known else replace(label, not_prompts=()))
    return tuple(labels)


def _names(tag: Tag) -> tuple[str, str]:
    """A label's value without the white space around it, and its name in results."""
    name = tag.get("alias") or tag.get("value") or ""
    return (tag.get("value") or "").strip() or name, name


def _label(tag: Tag, name: str, value: str, phrase_field: str | None) -> LabelPrompt:
    own = _own_phrases(tag, value)
    prompts = own or (" ".join(value.split()),)
    not_prompts = _split(tag, "not_prompt", "|", "striped " + value)
    both = set(prompts) & set(not_prompts)
    if both:
        raise LabelConfigError(
            f'{where(tag, "not_prompt")}, but "{min(both)}" is what the label asks for',
            "Name only what must not be included",
            line=tag.line,
        )
    prompt_from = None if own else phrase_field
    text = tag.get("model_prompt_from")
    if text is not None:
        prompt_from = data_field(text.strip(), where(tag, "model_prompt_from"), tag.line)
    return LabelPrompt(name, prompts, value, not_prompts, prompt_from)


def _own_phrases(tag: Tag, example: str) -> tuple[str, ...] | None:
    """What `prompt`, else `predicted_values` says; None without either."""
    for attribute, separator in (("prompt", "|"), ("predicted_values", ",")):
        if tag.get(attribute) is not None:
            return _split(tag, attribute, separator, example)
    return None


def _split(tag: Tag, attribute: str, separator: str, example: str) -> tuple[str, ...]:
    """The phrases of an attribute, without repeats; () where the tag does not carry it."""
    text = tag.get(attribute)
    if text is None:
        return ()
    phrases = tuple(dict.fromkeys(" ".join(part.split()) for part in text.split(separator) if part.strip()))
    if not phrases:
        raise LabelConfigError(
            f"{where(tag, attribute)}, which holds no phrase",
            f'Write one, like {attribute}="{example}", or remove the attribute',
            line=tag.line,
        )
    return phrases


def _twice(tag: Tag, name: str, control: Tag, first: Tag) -> LabelConfigError:
    return LabelConfigError(
        f'<{tag.name} value="{tag.get("value")}"> gives "{name}" a second time in '
        f'<{control.name} name="{control.get("name")}"> (first in line {first.line})',
        'Keep one and join its phrases: prompt="first | second"',
        line=tag.line,
    )


def _owner(tag: Tag) -> Tag | None:
    """The control that a label belongs to: the nearest tag above with name and toName."""
    above = tag.parent
    while above is not None and not (above.get("name") and above.get("toName") is not None):
        above = above.parent
    return above

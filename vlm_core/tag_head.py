"""Answers to one question about a whole image, learned: a linear classifier on the image's embedding.

A question offers labels, and one or several of them apply. Zero-shot, a label is answered by the text embedding of its
phrases; a head replaces that by a row of weights for each label. Rows start at the text embeddings (LP++, Huang et al.,
arXiv:2404.02285; CLAP, Silva-Rodriguez et al., arXiv:2312.12730, call for that start at few images), so a label that
the head does not know yet can still be answered by its text, beside those that it knows.

Heads are kept beside a decoder's weights, one vector a label, under names that `split_heads` reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_core.errors import CheckpointMismatchError

PREFIX = "tag_heads."


@dataclass(frozen=True, eq=False)
class TagHead:
    """What was learned for one question.

    Attributes:
        labels: L of them, as results name them.
        weight: (L, E), float32: a label's logit is `weight @ embedding + bias`, of L2-normalised image embeddings.
        bias: (L,), float32.
        scale, offset: of a label that is not among them: its logit is `scale * cosine + offset`, with the cosine
            between the image and its best phrase.
        multiple: any number of labels applies, each with a probability of its own (sigmoid); else one (softmax).
    """

    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    scale: float
    offset: float
    multiple: bool

    def logits(self, image: Tensor) -> Tensor:
        """Of each label, (L,).

        Args:
            image: (E,), L2-normalised.
        """
        return self.weight.to(image.device) @ image.float() + self.bias.to(image.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the labels that are offered now, the last axis; with `multiple` each alone, else they sum to one."""
        return torch.sigmoid(logits) if self.multiple else logits.softmax(-1)


def join_heads(heads: Mapping[str, TagHead]) -> dict[str, Tensor]:
    """Heads by question, as tensors to be kept."""
    found = {}
    for question, head in heads.items():
        found[_key(question)] = torch.tensor([head.scale, head.offset, float(head.multiple)], dtype=torch.float32)
        for label, row, bias in zip(head.labels, head.weight, head.bias, strict=True):
            found[_key(question, label)] = torch.cat([row.float().cpu(), bias.float().cpu()[None]])
    return found


def split_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, TagHead]]:
    """All other tensors of a state, and what `join_heads` has joined.

    Raises:
        CheckpointMismatchError: tensors under our names that are no heads.
    """
    others = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    rows: dict[str, dict[str, Tensor]] = {}
    settings: dict[str, Tensor] = {}
    for name in sorted(state.keys() - others.keys()):
        question, label = _parsed(name)
        if label is None:
            settings[question] = state[name]
        else:
            rows.setdefault(question, {})[label] = state[name]
    heads = {}
    for question, found in rows.items():
        shapes = {tuple(row.shape) for row in found.values()}
        own = settings.pop(question, None)
        if own is None or own.shape != (3,) or len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise CheckpointMismatchError(f"the learned answers to {question!r} are not whole: use another version")
        table = torch.stack(list(found.values())).float()
        scale, offset, multiple = own.tolist()
        heads[question] = TagHead(tuple(found), table[:, :-1], table[:, -1], scale, offset, bool(multiple))
    if settings:
        raise CheckpointMismatchError(f"the learned answers to {min(settings)!r} are not whole: use another version")
    return others, heads


def _key(question: str, *label: str) -> str:
    return PREFIX + json.dumps([question, *label])


def _parsed(name: str) -> tuple[str, str | None]:
    try:
        match json.loads(name.removeprefix(PREFIX)):
            case [str(question)]:
                return question, None
            case [str(question), str(label)]:
                return question, label
    except ValueError:
        pass
    raise CheckpointMismatchError(f"{name!r} names no learned answer: these weights are of another release")


def newcomers(head: TagHead, labels: Sequence[str]) -> list[str]:
    """Those of the labels that a head does not know."""
    return [label for label in labels if label not in head.labels]

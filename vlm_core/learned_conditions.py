"""Conditions that were learned for phrases, as they are kept beside a decoder's weights.

What a phrase means to the decoder is one vector, its condition, which acts through FiLM alone. Where the text encoder's
does not say what annotators mean (a word that it does not know, or knows in another sense), the vector itself can be
learned from a few masks while every weight stays: prompt tuning (Zhou et al., arXiv:2109.01134, there for CLIP's
input). Nothing changes for any other phrase.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "learned_conditions."


def join_state(weights: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's `state_dict` with the learned conditions (E,) of phrases."""
    return {**weights, **{PREFIX + phrase: value for phrase, value in learned.items()}}


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `join_state` has joined: the decoder's `state_dict`, and conditions by phrase."""
    weights = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    learned = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    return weights, learned

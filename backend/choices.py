"""Tag probabilities -> the answer of one control that ranks tags: `Choices` or `Taxonomy`. Pure functions.

The rule, for people:

- The control's phrases are ranked together: CLIP gives each a probability, a softmax over the phrases of this
  control. A label takes the highest probability among its alternatives, and the labels' values are scaled to
  sum to one. A label's score therefore depends on what it competes with.
- One answer (`choice="single"`): the best label. With `model_score_threshold`, only if its score reaches it.
- Several answers (`choice="multiple"`): CLIP has no absolute yes or no, and labels that are all present share
  the probability between them. So labels are compared with the best one: every label whose score is at least
  threshold times the best score is chosen (default 0.5), and so the best always is. At most `model_top_k`.
- The region's score is the probability of the labels that were chosen, taken together.
- Several answers of a SigLIP: it was trained to say yes or no to each text alone. A label's score is then its own
  probability, and every label whose score reaches the threshold is chosen (default 0.1), which may be none. It learned
  from one text in thousands that fits, so a clear yes is often no more than some tenths. The region's score is the
  mean of the labels that were chosen; with none, how sure that is.
- Answers that a version has learned from annotations (`vlm_core.tag_head`): one answer as above; of several answers
  every label whose own probability reaches the threshold (default 0.5), which may be none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from backend.label_studio.config import ControlPlan, LabelPrompt

DEFAULT_RELATIVE_THRESHOLD = 0.5
"""For several answers: share of the best label's score from which another label is chosen too."""

DEFAULT_OWN_THRESHOLD = 0.1
"""For several answers of a model that says yes or no to each label: the probability from which a label is chosen."""

LEARNED_THRESHOLD = 0.5
"""For several answers that a version has learned: the probability from which a label is chosen. It was fitted to it."""

RULES: dict[str, object] = {
    "revision": 3,
    "relative_threshold": DEFAULT_RELATIVE_THRESHOLD,
    "own_threshold": DEFAULT_OWN_THRESHOLD,
    "learned_threshold": LEARNED_THRESHOLD,
}


@dataclass(frozen=True)
class Choice:
    """The answer of one control.

    Attributes:
        chosen: best first; empty when no label reaches the threshold.
        score: probability of the chosen labels, 0..1; with none chosen, how sure that is.
    """

    chosen: tuple[LabelPrompt, ...]
    score: float

    @property
    def labels(self) -> tuple[str, ...]:
        """The chosen labels, as they go into results."""
        return tuple(label.label for label in self.chosen)


def label_scores(control: ControlPlan, probabilities: Mapping[str, float]) -> list[tuple[LabelPrompt, float]]:
    """Score the control's labels, best first; the scores sum to one.

    Args:
        control: one that ranks tags.
        probabilities: of each of its phrases, 0..1.
    """
    best = _best_of_alternatives(control, probabilities)
    total = sum(value for _, value in best)
    if total <= 0:
        return [(label, 1 / len(best)) for label, _ in best]
    return sorted(((label, value / total) for label, value in best), key=lambda item: -item[1])


def own_scores(control: ControlPlan, probabilities: Mapping[str, float]) -> list[tuple[LabelPrompt, float]]:
    """`label_scores` from probabilities that each stand alone, as SigLIP gives them; they need not sum to one."""
    return sorted(_best_of_alternatives(control, probabilities), key=lambda item: -item[1])


def choose_each(control: ControlPlan, probabilities: Mapping[str, float]) -> Choice:
    """Answer a control of several answers from probabilities that each stand alone, as SigLIP gives them.

    Args:
        control: one that ranks tags, with `multiple`.
        probabilities: of each of its phrases, 0..1; they need not sum to one.
    """
    ranked = own_scores(control, probabilities)
    threshold = DEFAULT_OWN_THRESHOLD if control.threshold is None else control.threshold
    chosen = [(label, score) for label, score in ranked if score >= threshold][: control.top_k]
    if not chosen:
        return Choice((), _unit(1.0 - ranked[0][1]))
    return Choice(tuple(label for label, _ in chosen), _unit(sum(score for _, score in chosen) / len(chosen)))


def choose(control: ControlPlan, probabilities: Mapping[str, float]) -> Choice:
    """Answer one control from the probabilities of its phrases; the module's docstring has the rule."""
    ranked = label_scores(control, probabilities)
    top = ranked[0][1]
    if not control.multiple:
        if control.threshold is not None and top < control.threshold:
            return Choice((), 1.0 - top)
        return Choice((ranked[0][0],), _unit(top))
    threshold = DEFAULT_RELATIVE_THRESHOLD if control.threshold is None else control.threshold
    chosen = [(label, score) for label, score in ranked if score >= threshold * top]
    if control.top_k is not None:
        chosen = chosen[: control.top_k]
    return Choice(tuple(label for label, _ in chosen), _unit(sum(score for _, score in chosen)))


def _best_of_alternatives(control: ControlPlan, probabilities: Mapping[str, float]) -> list[tuple[LabelPrompt, float]]:
    return [(label, max(_finite(probabilities[phrase]) for phrase in label.prompts)) for label in control.labels]


def _finite(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))

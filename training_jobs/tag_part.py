"""Learning answers for whole images: embeds images, adapts each question, and has the gate compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backend.label_studio.config import ControlPlan
from backend.label_studio.true_tags import tag_controls
from backend.manifest import Cuts
from training_jobs.corrections import CorrectedImage
from training_jobs.fitting import Project
from training_jobs.part import Part, Progress, TooFew, fresh
from training_jobs.promote import MIN_IMAGES
from training_jobs.promote_tags import TagAnswer, judge_tags
from training_jobs.recipes.fit_tags import TagExample
from training_jobs.tag_ladder import TagClimb, answered
from vlm_core.model import Model
from vlm_core.tag_head import TagHead, join_heads


def learn_tags(
    project: Project, training: Sequence[CorrectedImage], held_out: Sequence[CorrectedImage], progress: Progress
) -> Part | TooFew:
    """Learn from the training images, and judge.

    Args:
        project: what is fixed.
        training, held_out: images, also those that say nothing of tags.
        progress: over all of it.
    """
    training = [image for image in training if image.tags]
    held_out = [image for image in held_out if image.tags]
    config = project.config
    new = fresh(training, project.current)
    enough = len(held_out) >= MIN_IMAGES
    usable = len(held_out) if enough else len(held_out) + len(new)
    if usable < MIN_IMAGES:
        return TooFew(f"{usable} of {MIN_IMAGES} images with a choice to compare versions on")
    if len(training) < config.tags.least_images:
        return TooFew(f"{len(training)} of {config.tags.least_images} images with a choice to learn from")

    examples = _Examples(project, [*training, *held_out], progress)
    old, _ = project.serving
    heads: dict[str, TagHead] = {}
    chosen, answers = {}, []
    wanted = {image.sha256 for image in new}
    for control in tag_controls(project.plan):
        climb = TagClimb(
            control,
            examples.of(control, training),
            project.model,
            config,
            lambda: progress("learning choices", 1.0, None),
        )
        head, chosen[control.from_name] = climb.learn()
        if head is not None:
            heads[control.from_name] = head
        if not enough:
            for images, own in climb.by_folds():
                asked = [one for one in examples.of(control, new) if one.image in images & wanted]
                answers += _compared(control, asked, old, _with(project.model, control, own))
        answers += _compared(control, examples.of(control, held_out), old, _with(project.model, control, head))
    return Part(
        name="tags",
        state=join_heads(heads),
        cuts=Cuts(),
        chosen=chosen,
        scores=[score for answer in answers for score in answer.scores()],
        verdict=judge_tags(answers, seed=config.decoder.seed),
        by_folds=not enough,
        answers=answers,
    )


class _Examples:
    """Embeds images once, for all questions."""

    def __init__(self, project: Project, images: Sequence[CorrectedImage], progress: Progress) -> None:
        self._embeds = {}
        for number, image in enumerate(images):
            progress("encoding images", number / len(images), None)
            embeds = project.features.tags(image.sha256, image.open).image_embeds
            assert embeds is not None  # it was asked for
            self._embeds[image.sha256] = embeds[0].numpy()

    def of(self, control: ControlPlan, images: Sequence[CorrectedImage]) -> list[TagExample]:
        """Those of the images that answer a question."""
        return [
            TagExample(image.sha256, self._embeds[image.sha256], own.chosen, own.about)
            for image in images
            if (own := image.tags.get(control.from_name)) is not None
        ]


def _with(model: Model, control: ControlPlan, head: TagHead | None) -> Model:
    heads: Mapping[str, TagHead] = {} if head is None else {control.from_name: head}
    return model.with_learned(join_heads(heads))


def _compared(control: ControlPlan, examples: Sequence[TagExample], old: Model, new: Model) -> list[TagAnswer]:
    return [
        TagAnswer(
            image=one.image,
            question=control.from_name,
            true=one.chosen,
            about=one.about,
            old=answered(control, old, one.embedding) & one.about,
            new=answered(control, new, one.embedding) & one.about,
        )
        for one in examples
    ]

"""Learning masks: encodes the views of images, climbs the ladder, and has the gate compare."""

from __future__ import annotations

from collections.abc import Sequence

from training_jobs.corrections import CorrectedImage
from training_jobs.fit_checkpoints import FitCheckpoints
from training_jobs.fitting import Project, compare, compare_by_folds, encode_examples, labels_of
from training_jobs.ladder import Climb
from training_jobs.part import Part, Progress, TooFew, fresh, within
from training_jobs.promote import MIN_IMAGES, Score, judge
from training_jobs.scoring import See


def learn_masks(
    project: Project,
    training: Sequence[CorrectedImage],
    held_out: Sequence[CorrectedImage],
    checkpoints: FitCheckpoints,
    progress: Progress,
    see: See,
) -> Part | TooFew:
    """Learn from the training images, and judge.

    Args:
        project: what is fixed; its model has a decoder.
        training, held_out: images, also those that say nothing of masks.
        checkpoints: where finished fits are found again.
        progress: over all of it.
        see: is shown what was compared.
    """
    training = [image for image in training if image.labels]
    held_out = [image for image in held_out if image.labels]
    config = project.config
    new = fresh(training, project.current)
    enough = sum(bool(image.masks) for image in held_out) >= MIN_IMAGES
    usable = sum(bool(image.masks) for image in (held_out if enough else [*held_out, *new]))
    least = 1 if enough else config.choose_from
    if usable < MIN_IMAGES:
        return TooFew(f"{usable} of {MIN_IMAGES} images with a label to compare versions on")
    if len(training) < least:
        return TooFew(f"{len(training)} of {least} images to learn from")

    encoding = within(progress, 0.0, 0.22)
    examples, prompts = encode_examples(project, training, lambda share: encoding("encoding images", share, None))
    climb = Climb(
        project.decoder,
        examples,
        prompts,
        labels_of(project, training),
        config,
        within(progress, 0.22, 0.99),
        checkpoints,
        project.devices,
        project.model.adaptable_blocks,
    )
    learned = climb.learn()
    progress("comparing", 0.99, None)

    def alive() -> None:
        progress("comparing", 0.99, None)

    scores: list[Score] = [] if enough else compare_by_folds(project, climb.by_folds(), new, alive, see)
    scores += compare(project, held_out, learned, alive, see)
    return Part(
        name="masks",
        state=learned.state,
        cuts=learned.cuts,
        chosen=learned.chosen,
        scores=scores,
        verdict=judge(scores, seed=config.decoder.seed),
        by_folds=not enough,
    )

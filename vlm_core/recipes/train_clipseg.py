"""Recipe: train a CLIPSeg decoder, and its encoders too where asked for, on phrases with masks.

Read from top to bottom: settings, check all of them, set up, train, save. Run it with
`vlm train clipseg`, or call :func:`train_clipseg` with sources of one's own.

Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003. As published, the encoders are frozen and the loss is
binary cross entropy; the Dice term, several phrases an image and learning encoders are this recipe's. `PAPER` holds
what was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core import checkpoint
from vlm_core.checkpoint import resolve_device
from vlm_core.clip import CLIP
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.data import PhraseSample, PhraseSource, batch_indices, sample_rng
from vlm_core.errors import DataError, InputError
from vlm_core.evaluate import can_match, evaluate_matching, evaluate_segmentation
from vlm_core.losses import contrastive_loss, segmentation_loss, word_loss
from vlm_core.model import Model
from vlm_core.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, TextTokenizer
from vlm_core.projection import normalised
from vlm_core.prompts import CLIPSEG_TEMPLATES
from vlm_core.recipes import common
from vlm_core.recipes.progress import Progress
from vlm_core.templates import check_templates, fill_template
from vlm_core.visual_prompts import highlight, mix_conditions

ValidationSamples = Callable[[], Iterable[PhraseSample]]


@dataclass(frozen=True, slots=True)
class TrainClipsegSettings:
    """Settings of `train_clipseg`.

    Attributes:
        clip: a checkpoint that `vlm_core.load` takes: the CLIP to build on.
        keep_decoder: go on with the decoder of that checkpoint instead of a new one; its sizes are kept.
        image_size: the decoder's square input, px; None takes the CLIP's own size.
        imagenet_colours: normalise the decoder's input by ImageNet's mean and deviation, as the published weights
            expect, instead of the CLIP's own.
        taps: 0-based blocks of the image encoder; None: (3, 6, 9) of twelve blocks, evenly spread otherwise.
        reduce_dim, num_heads, mlp_width, dropout: of the decoder.
        refined_head: the head with a 3 x 3 convolution instead of a plain linear map of each patch.
        normalise_inputs: of the decoder: layer norms on what the encoders give it.
        train_encoders: let both encoders learn from the masks as well.
        contrastive_weight: weight of the matching loss beside the mask loss, so that encoders that learn still
            match images with texts; only with `train_encoders`, and with texts in the data.
        word_weight: weight of the loss that asks each condition for the words of its phrase. A text encoder that
            learns with the masks gives words that do not help at once ("left") the same condition, and then nothing
            can be learned about them; this keeps them apart. Only with `train_encoders`.
        dice_weight: weight of the Dice term; 0 is the paper's loss.
        phrases_per_image: decoded from one encoding of the image.
        templates: sentences with one `{}`; each phrase is put into one of them, drawn anew each time.
        text_weight: least and most weight of the text, 0..1, in a mix of the phrase's condition with that of its
            object in another image; drawn for each phrase, 1 where no other image shows it. None: text alone. The
            data must give exemplars.
        steps, batch_size, learning_rate, weight_decay: of AdamW with a one-cycle schedule; a batch counts images.
        warmup: part of the steps in which the learning rate rises; 0 starts at its peak.
        final_rate: last learning rate, in parts of the peak.
        evaluate_every: updates between measurements on the validation part; a multiple of `save_every`.
        save_every: updates between lines in `metrics.jsonl` and states that a run can be resumed from.
        seed: decides weights, order and dropout; with it a CPU run gives the same weights again.
        device: "auto", "cpu", "cuda", ...
        precision: "fp32", "bf16" or "auto": bf16 on a GPU.
        store: "float32" or "float16" weights in the checkpoint.
        name: base of version names of the model.
    """

    clip: str
    keep_decoder: bool = False
    image_size: int | None = None
    imagenet_colours: bool = False
    taps: tuple[int, ...] | None = None
    reduce_dim: int = 64
    num_heads: int = 4
    mlp_width: int = 2048
    dropout: float = 0.1
    refined_head: bool = False
    normalise_inputs: bool = False
    train_encoders: bool = False
    contrastive_weight: float = 0.0
    word_weight: float = 0.0
    dice_weight: float = 0.5
    phrases_per_image: int = 4
    templates: tuple[str, ...] = ("{}",)
    text_weight: tuple[float, float] | None = None
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    final_rate: float = 0.01
    evaluate_every: int = 200
    save_every: int = 200
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    store: str = "float32"
    name: str = "clipseg"

    def problems(self) -> list[str]:
        """Everything that is wrong with these values alone."""
        found = []
        counts = ("phrases_per_image", "steps", "batch_size", "evaluate_every", "save_every", "mlp_width", "reduce_dim")
        found += [f"{name} is {getattr(self, name)}: at least 1" for name in counts if getattr(self, name) < 1]
        if self.save_every >= 1 and self.evaluate_every % self.save_every:
            found.append(f"evaluate_every {self.evaluate_every} must be a multiple of save_every {self.save_every}")
        if not 0 < self.learning_rate <= 1 or self.weight_decay < 0:
            found.append(f"learning_rate {self.learning_rate} must be in (0, 1], weight_decay not negative")
        if min(self.contrastive_weight, self.word_weight, self.dice_weight) < 0 or not 0 <= self.dropout < 1:
            found.append("contrastive_weight, word_weight and dice_weight must not be negative, dropout in [0, 1)")
        found += [
            f"{name} has no effect on frozen encoders: set train_encoders or leave it at 0"
            for name in ("contrastive_weight", "word_weight")
            if getattr(self, name) and not self.train_encoders
        ]
        if not 0 <= self.warmup < 1 or not 0 <= self.final_rate <= 1:
            found.append(f"warmup {self.warmup} must be in [0, 1), final_rate {self.final_rate} in [0, 1]")
        try:
            check_templates(self.templates)
        except InputError as error:
            found.append(str(error))
        if self.text_weight is not None and not 0 <= self.text_weight[0] <= self.text_weight[1] <= 1:
            found.append(f"text_weight {self.text_weight} must be two numbers between 0 and 1, the smaller first")
        if self.precision not in ("auto", "fp32", "bf16"):
            found.append(f'precision {self.precision!r} must be "auto", "fp32" or "bf16"')
        if self.store not in ("float32", "float16"):
            found.append(f'store {self.store!r} must be "float32" or "float16"')
        return found


PAPER: Mapping[str, Any] = {
    "image_size": 352,
    "imagenet_colours": True,
    "dice_weight": 0.0,
    "phrases_per_image": 1,
    "templates": CLIPSEG_TEMPLATES,
    "text_weight": (0.0, 0.5),
    "steps": 20_000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 0.0,
    "final_rate": 0.1,
    "evaluate_every": 1000,
    "save_every": 1000,
}
"""Settings of the published training, over OpenAI's ViT-B/16; what is not named here has its default.

Its data: `JsonlPhrases(path, absent=0.2, crop=True, exemplars=True)` over PhraseCut.
The paper draws the text's weight from 0 to 1; its released configuration, whose weights are the published ones, from
0 to 0.5, which is taken. Not the same: there a batch draws phrases, here images and one phrase of each; here gradients
are clipped at norm 1, biases and norms do not decay, and an exemplar is never of the picture that is asked about.
"""
REFINED_STEPS = 50_000
"""The published steps with the refined head."""


def train_clipseg(
    settings: TrainClipsegSettings,
    train: PhraseSource,
    validation: ValidationSamples | None,
    output: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train, measuring as it goes, and write `output/checkpoint`.

    Args:
        settings: see `TrainClipsegSettings`.
        train: what to learn from.
        validation: called for each measurement; gives images at their own size with all their phrases. None
            measures nothing but the loss.
        output: directory of the run: `checkpoint/`, `metrics.jsonl`, `metrics.png`, and the state to resume from.
        resume: go on with the run in `output`; with the same settings it ends as if never interrupted.
        quiet: no progress bar.

    Returns:
        The checkpoint's directory, in our own layout.

    Raises:
        SettingsError: settings that cannot work, all of them listed.
        CheckpointError: the CLIP cannot be loaded, or the decoder's sizes do not fit it.
        DataError: an image, mask or text that cannot be read.
    """
    # --- check everything before any work ----------------------------------------------------------------
    problems = settings.problems()
    if len(train) < settings.batch_size:
        problems.append(f"{len(train)} training images are fewer than batch_size {settings.batch_size}: lower it")
    problems += common.output_problems(output, resume)
    common.raise_all(problems)

    # --- set up ------------------------------------------------------------------------------------------
    common.seed_everything(settings.seed)
    device = resolve_device(settings.device)
    precision = common.resolve_precision(settings.precision, device)
    base = checkpoint.load(settings.clip, device=str(device), dtype="float32")
    clip, tokenizer = base.clip, base.tokenizer
    clip.requires_grad_(settings.train_encoders)
    if settings.keep_decoder and base.decoder is None:
        raise common.SettingsError(f"keep_decoder is set but {settings.clip} has no decoder: leave it out")
    decoder = base.decoder if settings.keep_decoder else None
    decoder = (decoder or CLIPSegDecoder(_decoder_config(settings, clip))).to(device).requires_grad_(True)
    side = settings.image_size or base.tag_transform.size_hw[0]
    mean, std = base.tag_transform.mean, base.tag_transform.std
    if settings.imagenet_colours:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    transform = ImageTransform(size_hw=(side, side), mean=mean, std=std)
    # Encoders that learn see images squashed, for masks and for texts alike.
    tag_transform = transform if settings.train_encoders else base.tag_transform
    learners: dict[str, nn.Module] = {"decoder": decoder}
    if settings.train_encoders:
        learners["clip"] = clip
    words = None
    if settings.word_weight:
        words = nn.Embedding(clip.text_encoder.vocabulary_size, clip.projection_dim).to(device)
        learners["words"] = words
    optimizer = torch.optim.AdamW(
        common.parameter_groups(list(learners.values()), settings.weight_decay), lr=settings.learning_rate
    )
    output.mkdir(parents=True, exist_ok=True)
    start = common.load_state(output, learners, optimizer, settings) if resume else 0
    log = common.MetricsLog(output, resumed_at=start)

    def model_of(clip: CLIP, decoder: CLIPSegDecoder) -> Model:
        return Model(
            clip=clip,
            decoder=decoder,
            tokenizer=tokenizer,
            mask_transform=transform,
            tag_transform=tag_transform,
            name=settings.name,
            fingerprint="",
            device=device,
        )

    def measure(step: int, losses: list[dict[str, float]]) -> None:
        values = {key: float(np.mean([row[key] for row in losses])) for key in losses[0]}
        if validation is not None and (step % settings.evaluate_every == 0 or step == settings.steps):
            with common.evaluating(clip) as frozen_clip, common.evaluating(decoder) as frozen_decoder:
                values |= _measure(model_of(frozen_clip, frozen_decoder), validation, settings.seed)
        log.add(step, **values)
        log.draw()

    def write(directory: Path) -> None:
        checkpoint.save(
            directory,
            clip=clip,
            tokenizer=tokenizer,
            tag_transform=tag_transform,
            decoder=decoder,
            mask_transform=transform,
            name=settings.name,
            dtype=torch.float16 if settings.store == "float16" else torch.float32,
            about={
                "recipe": "clipseg",
                "settings": common.jsonable(settings),
                "metrics": log.rows[-1] if log.rows else {},
            },
        )

    # --- train -------------------------------------------------------------------------------------------
    losses: list[dict[str, float]] = []
    with Progress("train clipseg", settings.steps, start, quiet=quiet) as progress:
        for step in range(start, settings.steps):
            clip.train(settings.train_encoders)
            decoder.train()
            for group in optimizer.param_groups:
                group["lr"] = common.learning_rate(
                    step, settings.steps, settings.learning_rate, warmup=settings.warmup, final=settings.final_rate
                )
            indices = batch_indices(len(train), settings.batch_size, step, settings.seed)
            samples, weights = [], []
            for index in indices:
                rng = sample_rng(settings.seed, step, index)
                sample = train.sample(index, rng, settings.phrases_per_image)
                samples.append(_in_templates(sample, settings.templates, rng))
                weights += _text_weights(sample, settings.text_weight, rng)
            with common.computing(device, precision):
                parts = _losses(settings, clip, decoder, words, tokenizer, transform, samples, weights, device)
            loss = parts["mask_loss"] + settings.contrastive_weight * parts.get("match_loss", 0.0)
            loss = loss + settings.word_weight * parts.get("word_loss", 0.0)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            if settings.train_encoders:
                clip.limit_temperature()
            losses.append({key: value.item() for key, value in parts.items()})
            done = step + 1
            progress.advance(loss=float(loss.item()))
            if done % settings.save_every == 0 or done == settings.steps:
                measure(done, losses)
                losses.clear()
                common.save_state(output, done, learners, optimizer, settings)
                write(output / common.CHECKPOINT)

    # --- clean up ----------------------------------------------------------------------------------------
    if start == settings.steps:  # the run was cut off between its last state and its checkpoint
        write(output / common.CHECKPOINT)
    return output / common.CHECKPOINT


def _losses(
    settings: TrainClipsegSettings,
    clip: CLIP,
    decoder: CLIPSegDecoder,
    words: nn.Embedding | None,
    tokenizer: TextTokenizer,
    transform: ImageTransform,
    samples: Sequence[PhraseSample],
    text_weights: Sequence[float],
    device: torch.device,
) -> dict[str, Tensor]:
    """Mask loss and, where asked for, word loss and matching loss (where texts are there) of one batch.

    `text_weights` has one for each phrase of all samples; a phrase whose weight is below 1 has an exemplar.
    """
    pixels = torch.stack([transform(sample.image) for sample in samples]).to(device)
    texts = [sample.text for sample in samples if sample.text is not None]
    match = settings.contrastive_weight > 0 and len(texts) == len(samples)
    phrases = [phrase for sample in samples for phrase in sample.phrases]
    with torch.set_grad_enabled(settings.train_encoders):
        encoded = clip.image_encoder(pixels, decoder.config.taps, pooled=match)
        input_ids, attention_mask = tokenizer([*phrases, *texts] if match else phrases)
        conditions = clip.conditions(input_ids.to(device), attention_mask.to(device))
        asked = _mixed(clip, transform, conditions[: len(phrases)], samples, text_weights)
    per_image = asked.view(len(samples), -1, clip.projection_dim)
    logits = decoder(encoded.taps, per_image, encoded.grid_hw)
    target = torch.stack(
        [
            F.interpolate(torch.from_numpy(sample.masks)[None], size=logits.shape[-2:], mode="area")[0]
            for sample in samples
        ]
    ).to(device)
    parts = {"mask_loss": segmentation_loss(logits.float(), target, dice_weight=settings.dice_weight)}
    if match:
        assert encoded.pooled is not None
        image = normalised(clip.visual_projection(encoded.pooled))
        text = normalised(conditions[len(phrases) :])
        parts["match_loss"] = contrastive_loss(clip.temperature_scale * image.float() @ text.float().T)
    if words is not None:
        said = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(tokenizer.tokenizer.all_special_ids))
        parts["word_loss"] = word_loss(conditions, words.weight, input_ids.to(device), said.to(device))
    return parts


def _in_templates(sample: PhraseSample, templates: Sequence[str], rng: np.random.Generator) -> PhraseSample:
    """Each phrase in a template of its own; nothing is drawn where there is one alone."""
    drawn = [0] * len(sample.phrases) if len(templates) == 1 else rng.integers(len(templates), size=len(sample.phrases))
    told = (fill_template(templates[int(i)], phrase) for i, phrase in zip(drawn, sample.phrases, strict=True))
    return replace(sample, phrases=tuple(told))


def _text_weights(sample: PhraseSample, between: tuple[float, float] | None, rng: np.random.Generator) -> list[float]:
    """How much of each phrase's condition is the text's; nothing is drawn where it is all."""
    if between is None:
        return [1.0] * len(sample.phrases)
    if len(sample.exemplars) != len(sample.phrases):
        raise DataError(
            "text_weight mixes texts with pictures of the same objects, but the training data gives none: "
            "open it with JsonlPhrases(path, exemplars=True), or leave text_weight out"
        )
    drawn = rng.uniform(*between, size=len(sample.phrases))
    return [1.0 if shown is None else float(w) for w, shown in zip(drawn, sample.exemplars, strict=True)]


def _mixed(
    clip: CLIP,
    transform: ImageTransform,
    conditions: Tensor,
    samples: Sequence[PhraseSample],
    text_weights: Sequence[float],
) -> Tensor:
    """The phrases' conditions, (N, E), each mixed with that of its exemplar where its weight is below 1."""
    rows = [row for row, weight in enumerate(text_weights) if weight < 1]
    if not rows:
        return conditions
    shown = [exemplar for sample in samples for exemplar in sample.exemplars]
    pictures = [transform(highlight(*shown[row], fill=transform.mean)) for row in rows]  # type: ignore[misc]
    visual = clip.visual_conditions(torch.stack(pictures).to(conditions.device))
    weights = torch.tensor([text_weights[row] for row in rows], device=conditions.device)[:, None]
    mixed = conditions.float().clone()
    mixed[rows] = mix_conditions(mixed[rows], visual.float(), weights)
    return mixed


def _decoder_config(settings: TrainClipsegSettings, clip: CLIP) -> DecoderConfig:
    encoder = clip.image_encoder
    taps = settings.taps
    if taps is None:
        depth = encoder.depth
        taps = (3, 6, 9) if depth == 12 else tuple(sorted({depth // 3, 2 * depth // 3, depth - 1}))
    patch = encoder.patch_size
    # A patch's pixels are reached by one transposed convolution, or by two whose kernels multiply to it.
    small = next(k for k in (4, 2, 7, 3, 5, 1) if patch % k == 0)
    return DecoderConfig(
        taps=taps,
        tap_width=encoder.width,
        condition_dim=clip.projection_dim,
        num_prefix_tokens=encoder.num_prefix_tokens,
        reduce_dim=settings.reduce_dim,
        num_heads=settings.num_heads,
        mlp_width=settings.mlp_width,
        head_kernels=(patch // small, small) if settings.refined_head else (patch,),
        dropout=settings.dropout,
        normalise_inputs=settings.normalise_inputs,
    )


def _measure(model: Model, validation: ValidationSamples, seed: int) -> dict[str, float]:
    """Masks and, where the data has texts, one-of-four matching, through the same code that users call."""
    told: list[str] = []
    right: list[tuple[str, ...]] = []

    def samples() -> Iterator[PhraseSample]:  # one at a time: all pictures and masks may not fit into the memory
        for sample in validation():
            if sample.text is not None:
                told.append(sample.text)
                right.append(sample.texts)
            yield sample

    report = evaluate_segmentation(model, samples()).to_dict()
    measures = ("mean_iou", "foreground_iou", "absent_marked")
    values: dict[str, float] = {key: report[key] for key in measures if key in report}
    if can_match(told, right=right):
        images = (sample.image for sample in validation() if sample.text is not None)
        values["one_of_four"] = evaluate_matching(model, images, told, right=right, seed=seed)
    return values

"""The loaded model: an image is encoded once, then any number of prompts and tags are answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_core.adapted_blocks import blocks_between
from vlm_core.batching import batch_sizes, group_conditions, pad_conditions
from vlm_core.clip import CLIP
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.condition_cache import ConditionCache
from vlm_core.errors import CapabilityError, CheckpointMismatchError, InputError
from vlm_core.learned_conditions import split_state
from vlm_core.mask_head import MaskHead, split_mask_head
from vlm_core.preprocess import SEEN_REVISION, ImageTransform, TextTokenizer
from vlm_core.projection import normalised
from vlm_core.prompts import PreparedPrompts, Prompt, as_prompts, prepare_prompts
from vlm_core.tag_head import TagHead, newcomers, split_heads
from vlm_core.tags import NEUTRAL_TAGS, TagCalibration, against_neutral, single_choice
from vlm_core.templates import check_templates, fill_template
from vlm_core.tiles import Tile, choose_windows, segment_windows
from vlm_core.types import ImageFeatures, MaskLogits, TagScore, check_phrases
from vlm_core.visual_prompts import Exemplar, check_exemplars, highlight


class Model:
    """CLIP, with a CLIPSeg decoder where the checkpoint has one. Safe to call from several threads.

    Attributes:
        name: base of version names, such as `demo`.
        fingerprint: sha256, hex, over weights, configuration and tokenizer.
        clip: the dual encoder, frozen, in evaluation mode.
        decoder: the mask decoder; None for a checkpoint that only ranks tags.
        tokenizer: texts -> ids.
        mask_transform, tag_transform: how each half sees an image.
        device, dtype: where and in what precision it computes.
        learned_conditions: of phrases that a project's version has learned, (E,) each; see `with_learned`.
        mask_head: what answers for phrases whose masks it has learned apart from the decoder; None: nothing does.
        tag_heads: answers that it has learned, by question.
    """

    def __init__(
        self,
        *,
        clip: CLIP,
        decoder: CLIPSegDecoder | None,
        tokenizer: TextTokenizer,
        mask_transform: ImageTransform | None,
        tag_transform: ImageTransform,
        name: str,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Put the parts together; `vlm_core.load` is the usual way to get one.

        Raises:
            CheckpointMismatchError: the decoder is not one for this CLIP.
        """
        if decoder is not None:
            _check_fit(clip, decoder)
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        # Kept in full: rounded to half precision they would move every probability.
        self._tag_scale = float(clip.temperature_scale.detach())
        self._tag_bias = None if clip.logit_bias is None else float(clip.logit_bias.detach())
        self.clip = clip.to(self.device, dtype).eval().requires_grad_(False)
        self.decoder = None if decoder is None else decoder.to(self.device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mask_transform = mask_transform
        self.tag_transform = tag_transform
        self.name = name
        self.fingerprint = fingerprint
        self.learned_conditions: dict[str, Tensor] = {}
        self.mask_head: MaskHead | None = None
        self.tag_heads: dict[str, TagHead] = {}
        self._text_cache = ConditionCache()

    @property
    def can_segment(self) -> bool:
        """Whether it gives masks."""
        return self.decoder is not None

    @property
    def can_rank(self) -> bool:
        """Whether it ranks tags; every checkpoint does."""
        return True

    @property
    def input_px(self) -> int:
        """The longest side of what its towers see of an image; more pixels than some times this tell it nothing."""
        transforms = [t for t in (self.mask_transform, self.tag_transform) if t is not None]
        return max(max(*t.size_hw, t.shortest_edge) for t in transforms)

    @property
    def mask_input_hw(self) -> tuple[int, int]:
        """What the masks' tower sees of an image, height and width, px. Raises CapabilityError where there is none."""
        return self._mask_parts()[1].size_hw

    @property
    def patch_cells(self) -> int:
        """How many cells of the decoder's answer a patch of its input is wide. Raises CapabilityError likewise."""
        return math.prod(self._mask_parts()[0].config.head_kernels)

    @property
    def phrase_counts(self) -> tuple[int, int]:
        """Phrases that were known when they were asked for, and phrases that had to be encoded, since the start."""
        return self._text_cache.hits, self._text_cache.misses

    @property
    def adaptable_blocks(self) -> tuple[nn.Module, ...]:
        """The image encoder's blocks that a mask head may change for itself; see `vlm_core.adapted_blocks`."""
        return () if self.decoder is None else blocks_between(self.clip.image_encoder, self.decoder.config.taps)

    @property
    def encode_batch(self) -> int:
        """Images that go through the encoder at once; more are taken one such batch after the other."""
        return batch_sizes(self.device).images

    @property
    def one_view(self) -> bool:
        """Whether tags see an image as masks do, so that one pass gives both."""
        return self.decoder is not None and self.mask_transform == self.tag_transform

    @property
    def features_id(self) -> str:
        """Names all that image features depend on: checkpoint, precision, revision. Letters, digits and dashes."""
        return f"{self.fingerprint[:16]}-{str(self.dtype).removeprefix('torch.')}-r{SEEN_REVISION}"

    def segment(
        self,
        image: Image.Image,
        prompts: Sequence[str | Prompt] = (),
        *,
        exemplars: Sequence[Exemplar] = (),
        tile: Tile = None,
    ) -> MaskLogits:
        """Score every pixel of one image against each prompt.

        Prompts do not compete: each is scored alone.

        Args:
            image: RGB, 8 bit, EXIF rotation already applied; H x W px, any size.
            prompts: P >= 1 phrases, none blank, or `Prompt`s: other words, what is not meant, pictures, mixes.
            exemplars: (picture, mask or box) pairs that show one more thing to look for; short for a last
                `Prompt(exemplars=exemplars)`, and enough without any other.
            tile: for what is small in a large image: look at it through overlapping windows as well, the narrowest
                so many px wide; "auto" chooses. See `vlm_core.tiles` for what windows cannot answer.

        Returns:
            Logits, float32, CPU, shape (P, H, W), in prompt order, also for P = 1.
            Unbounded; their sigmoid is not calibrated.

        Raises:
            InputError: nothing to look for, a blank prompt, or something that is no image.
            CapabilityError: the checkpoint only ranks tags.

        Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003.
        """
        asked = self.encode_prompts([*as_prompts(prompts), Prompt(exemplars=exemplars)] if exemplars else prompts)
        grid = self.decode(self.encode_image(image), asked.conditions).logits
        levels = choose_windows((image.height, image.width), self.mask_input_hw, tile)
        grid = segment_windows(self, image, asked.conditions, grid, levels)
        return MaskLogits(asked.answer(grid, (image.height, image.width)), asked.names)

    @property
    def tag_scale(self) -> float:
        """CLIP's temperature scale: a softmax over tags takes their cosines times this."""
        return self._tag_scale

    @property
    def tag_calibration(self) -> TagCalibration | None:
        """SigLIP's own scale and bias, which make a tag's probability its own; None for a CLIP trained by softmax."""
        return None if self._tag_bias is None else TagCalibration(self._tag_scale, self._tag_bias)

    def rank(
        self,
        image: Image.Image,
        tags: Sequence[str],
        *,
        multiple: bool = False,
        template: str | Sequence[str] = "{}",
        calibration: TagCalibration | None = None,
    ) -> list[TagScore]:
        """Rank tags by how well they describe the image, best first.

        Args:
            image: as for `segment`.
            tags: N >= 1 texts, none blank.
            multiple: False: one tag applies, and the probabilities sum to one. True: any number applies, and each
                tag's probability is its own.
            template: what is made of a tag before it is read, such as "a photo of a {}."; of several, their mean.
            calibration: for `multiple`, fitted by `vlm_core.tags.fit_tag_calibration` with the same template. Default:
                SigLIP's own; for a CLIP, the contrast with neutral words (`vlm_core.tags.against_neutral`).

        Raises:
            InputError: no tag, a blank one, a template without a place for it, a calibration without `multiple`, or
                something that is no image.

        Source: Radford et al., arXiv:2103.00020, zero-shot classification and prompt ensembling.
        """
        texts = check_phrases(tags, "tag")
        check_templates(template)
        features = self.encode_image(image, masks=False, tags=True)
        return self.rank_features(features, texts, multiple=multiple, template=template, calibration=calibration)

    @torch.inference_mode()
    def encode_image(
        self,
        images: Image.Image | Sequence[Image.Image],
        *,
        masks: bool = True,
        tags: bool = False,
        shared_pass: bool = False,
    ) -> ImageFeatures:
        """Run the image encoder: the expensive half of every answer.

        Args:
            images: one image or B of them, any sizes; memory is bounded however many.
            masks: keep what `decode` needs. Only the blocks up to the deepest tap run for it.
            tags: keep what `rank_features` needs. Tags see the image as CLIP was trained to, in a pass of
                their own; in the same pass where the checkpoint's two transforms are the same.
            shared_pass: tags see what masks see, in the same pass: cheaper, and not what CLIP was trained on.

        Raises:
            InputError: no image, something that is no image, or neither masks nor tags asked for.
            CapabilityError: masks of a checkpoint that only ranks tags.
        """
        batch = [images] if isinstance(images, Image.Image) else list(images)
        if not batch or not (masks or tags):
            raise InputError("encode_image needs at least one image, and masks or tags")
        if masks:
            self._mask_parts()
        size = self.encode_batch
        shared = masks and tags and (shared_pass or self.one_view)
        first = self._encode(batch[:size], masks=masks, tags=tags, shared=shared)
        if len(batch) <= size:
            return first
        whole = first.room_for(len(batch))
        whole.place(first, 0)
        for start in range(size, len(batch), size):
            whole.place(self._encode(batch[start : start + size], masks=masks, tags=tags, shared=shared), start)
        return whole

    def _encode(self, batch: Sequence[Image.Image], *, masks: bool, tags: bool, shared: bool) -> ImageFeatures:
        taps: tuple[Tensor, ...] = ()
        grid_hw = (0, 0)
        embeds: Tensor | None = None
        if masks:
            decoder, transform = self._mask_parts()
            encoded = self.clip.image_encoder(self._pixels(batch, transform), decoder.config.taps, pooled=shared)
            taps, grid_hw = encoded.taps, encoded.grid_hw
            if encoded.pooled is not None:
                embeds = self.clip.embeds_of(encoded.pooled)
        if tags and embeds is None:
            embeds = self.clip.image_embeds(self._pixels(batch, self.tag_transform))
        return ImageFeatures(taps, grid_hw, embeds)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Conditions for `decode`: (P, E) on the model's device, projected and **not** normalised. Cached by phrase.

        Of phrases that a version has learned a condition for, that one. With a `mask_head` they are wider by as many
        numbers as it knows phrases.
        """
        phrases = check_phrases(prompts, "prompt")
        found = self._text_cache.conditions(phrases, self._conditions)
        learned = {row: self.learned_conditions[p] for row, p in enumerate(phrases) if p in self.learned_conditions}
        if learned:
            found[list(learned)] = torch.stack(list(learned.values()))
        found = self._widened(found)
        if self.mask_head is not None:
            for output, known in enumerate(self.mask_head.phrases, start=self.clip.projection_dim):
                found[[row for row, phrase in enumerate(phrases) if phrase == known], output] = 1.0
        return found

    def _widened(self, conditions: Tensor) -> Tensor:
        """(P, E) as `decode` takes them: where there is a mask head, with none of its phrases."""
        if self.mask_head is None:
            return conditions
        return torch.nn.functional.pad(conditions, (0, len(self.mask_head.phrases)))

    def _conditions(self, phrases: list[str]) -> Tensor:
        input_ids, attention_mask = self.tokenizer(phrases)
        return self.clip.conditions(input_ids.to(self.device), attention_mask.to(self.device))

    @torch.inference_mode()
    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> Tensor:
        """Conditions for `decode` from pictures, as wide as those of texts: (N, E), projected and **not** normalised.

        Args:
            exemplars: N >= 1 (picture, mask or `xyxy` box) pairs. Each is cropped and its background blurred by
                `visual_prompts.highlight`, and seen as `segment` sees an image.

        Raises:
            InputError: none, or one that cannot be used.
            CapabilityError: the checkpoint only ranks tags.
        """
        _, transform = self._mask_parts()
        shown = check_exemplars(exemplars)
        if not shown:
            raise InputError("at least one exemplar is needed")
        rows = []
        for start in range(0, len(shown), self.encode_batch):
            pictures = [
                highlight(image, region, fill=transform.mean)
                for image, region in shown[start : start + self.encode_batch]
            ]
            rows.append(self.clip.visual_conditions(self._pixels(pictures, transform)))
        return self._widened(torch.cat(rows))

    def encode_prompts(self, prompts: Sequence[str | Prompt]) -> PreparedPrompts:
        """The conditions of P >= 1 prompts, with how the answers to them combine."""
        return prepare_prompts(prompts, self.encode_text, self.encode_exemplars)

    def text_embeds(self, tags: Sequence[str], template: str | Sequence[str] = "{}") -> Tensor:
        """Text embeddings for tags: (N, E) on the model's device, projected and L2-normalised.

        Of several templates, the mean of their embeddings, normalised again.
        """
        texts, templates = check_phrases(tags, "tag"), check_templates(template)
        filled = check_phrases([fill_template(form, text) for form in templates for text in texts], "tag")
        # Conditions that were learned for masks say nothing about tags.
        found = self._text_cache.conditions(filled, self._conditions)
        embeds = normalised(found).view(len(templates), len(texts), -1)
        return embeds[0] if len(templates) == 1 else normalised(embeds.float().mean(0)).to(embeds.dtype)

    def decode(self, features: ImageFeatures, conditions: Tensor, prompts: Sequence[str] | None = None) -> MaskLogits:
        """Decode masks from features: the cheap half.

        Args:
            features: of exactly one image, encoded with `masks=True`.
            conditions: (P, E), projected and not normalised, as `encode_text` gives them.
            prompts: names for the P conditions in the result; default empty strings.

        Returns:
            Logits on the model's own grid: a square view of the whole image, however its sides relate.

        Raises:
            InputError: features of several images, or without taps, no condition, or conditions of another width.
        """
        if len(features) != 1:
            raise InputError(f"decode takes the features of one image, got those of {len(features)}: use decode_batch")
        (logits,) = self.decode_batch(features, [conditions])
        return logits if prompts is None else MaskLogits(logits.logits, tuple(prompts))

    @torch.inference_mode()
    def decode_batch(self, features: ImageFeatures, conditions: Sequence[Tensor]) -> list[MaskLogits]:
        """`decode` for B images, each with conditions of its own.

        Images with as many conditions as each other are decoded together. On a GPU numbers are rounded up to powers
        of two, so that more are alike; what that adds is computed and thrown away.

        Args:
            features: of B images, encoded with `masks=True`.
            conditions: for each image (P, E), each with a P of its own, as for `decode`.

        Raises:
            InputError: as for `decode`, or another number of conditions than of images.
        """
        decoder, _ = self._mask_parts()
        if not features.taps:
            raise InputError("these features are without taps: encode the image with masks=True")
        if len(conditions) != len(features):
            raise InputError(f"{len(features)} images need conditions for each, got {len(conditions)}")
        text_width = decoder.config.condition_dim
        width = text_width + (0 if self.mask_head is None else len(self.mask_head.phrases))
        for some in conditions:
            if some.ndim != 2 or not len(some) or some.shape[1] != width:
                raise InputError(f"conditions need shape (P, {width}) with P >= 1, got {tuple(some.shape)}")
        taps = [t.to(self.device, self.dtype) for t in features.taps]
        rows: list[list[Tensor]] = [[] for _ in conditions]
        most = batch_sizes(self.device).conditions
        for group in group_conditions([len(some) for some in conditions], most, padded=self.device.type != "cpu"):
            pieces = [pad_conditions(conditions[piece.image][piece.first : piece.last], piece.width) for piece in group]
            stacked = torch.stack(pieces)
            indices = [piece.image for piece in group]
            # Slices where there is nothing to select: indexing copies, and taps are large.
            own = [t[indices[0] : indices[0] + 1] if len(indices) == 1 else t[indices] for t in taps]
            asked = stacked.to(self.device, self.dtype)
            # Contiguous: a matrix product rounds otherwise where rows lie apart, and heads must not move other answers.
            logits = decoder(own, asked[..., :text_width].contiguous(), features.grid_hw)
            if self.mask_head is not None:
                picks = asked[..., text_width:]
                logits = (1 - picks.sum(-1))[..., None, None] * logits
                logits = logits + self.mask_head.answer(own, picks, features.grid_hw)
            for piece, some in zip(group, logits.float().cpu(), strict=True):
                rows[piece.image].append(some[: piece.last - piece.first])
        return [
            MaskLogits(some[0] if len(some) == 1 else torch.cat(some), ("",) * len(wanted))
            for some, wanted in zip(rows, conditions, strict=True)
        ]

    @torch.inference_mode()
    def rank_features(
        self,
        features: ImageFeatures,
        tags: Sequence[str],
        *,
        multiple: bool = False,
        template: str | Sequence[str] = "{}",
        calibration: TagCalibration | None = None,
    ) -> list[TagScore]:
        """`rank` for one image that was encoded with `tags=True`."""
        texts = check_phrases(tags, "tag")
        if calibration is not None and not multiple:
            raise InputError("a calibration is for multiple=True: of a single choice the probabilities sum to one")
        if len(features) != 1 or features.image_embeds is None:
            raise InputError("rank_features takes the features of one image, encoded with tags=True")
        image = features.image_embeds[0].to(self.device).float()
        similarity = self.text_embeds(texts, template).float() @ image
        calibration = calibration or self.tag_calibration
        if not multiple:
            probability = single_choice(similarity, self._tag_scale)
        elif calibration is not None:
            probability = calibration.probabilities(similarity)
        else:
            neutral = self.text_embeds(NEUTRAL_TAGS, template).float() @ image
            probability = against_neutral(similarity, neutral, self._tag_scale)
        scores = [
            TagScore(tag, float(p), float(s))
            for tag, p, s in zip(texts, probability.cpu(), similarity.cpu(), strict=True)
        ]
        return sorted(scores, key=lambda s: -s.similarity)

    @torch.inference_mode()
    def classify_features(
        self, features: ImageFeatures, question: str, labels: Mapping[str, Sequence[str]]
    ) -> list[TagScore]:
        """Answer a question that was learned; see `vlm_core.tag_head`.

        Args:
            features: of one image, encoded with `tags=True`.
            question: one of `tag_heads`.
            labels: those that are offered now, at least one, each with its phrases. One that the head does not know is
                answered by its best phrase.

        Returns:
            Labels, best first, each with its probability; `similarity` is its logit.

        Raises:
            InputError: no label, a blank phrase, a question that was not learned, or other features.
        """
        head = self.tag_heads.get(question)
        if head is None or not labels:
            raise InputError(f"{question!r} was not learned, or offers no label: rank its tags instead")
        if len(features) != 1 or features.image_embeds is None:
            raise InputError("classify_features takes the features of one image, encoded with tags=True")
        image = features.image_embeds[0].to(self.device).float()
        known = dict(zip(head.labels, head.logits(image), strict=True))
        for label in newcomers(head, list(labels)):
            cosine = (self.text_embeds(labels[label]).float() @ image).max()
            known[label] = head.scale * cosine + head.offset
        logits = torch.stack([known[label] for label in labels])
        scores = [
            TagScore(label, float(p), float(logit))
            for label, p, logit in zip(labels, head.probabilities(logits).cpu(), logits.cpu(), strict=True)
        ]
        return sorted(scores, key=lambda score: -score.similarity)

    def with_learned(self, state: Mapping[str, Tensor]) -> Model:
        """The same encoders with what a project has learned: how a project's own version is served.

        Args:
            state: any of: the decoder's `state_dict`, whole; learned conditions (E,), each under its phrase (see
                `vlm_core.learned_conditions`): masks are asked for with it in place of what the text encoder says;
                a head that answers for some phrases (see `vlm_core.mask_head`); heads for tags (see
                `vlm_core.tag_head`).

        Raises:
            CapabilityError: decoder weights, and this checkpoint has no decoder.
            CheckpointMismatchError: the weights are of a decoder of another shape, or heads and conditions of another
                width.
        """
        others, heads = split_heads(state)
        others, mask_head = split_mask_head(
            others, None if self.decoder is None else self.decoder.config, self.adaptable_blocks
        )
        weights, learned = split_state(others)
        width = self.clip.projection_dim
        if wrong := [phrase for phrase, value in learned.items() if value.shape != (width,)]:
            raise CheckpointMismatchError(
                f"the learned condition of {wrong[0]!r} has shape {tuple(learned[wrong[0]].shape)}, not ({width},): "
                f"these weights do not fit {self.name!r}"
            )
        if odd := [question for question, head in heads.items() if head.weight.shape[1] != width]:
            raise CheckpointMismatchError(
                f"the learned answers to {odd[0]!r} are for embeddings {heads[odd[0]].weight.shape[1]} wide, those of "
                f"{self.name!r} are {width} wide"
            )
        model = Model.__new__(Model)
        model.__dict__.update(self.__dict__)
        if weights:
            model.decoder = self._other_decoder(weights)
        model.learned_conditions = {p: value.to(self.device, self.dtype) for p, value in learned.items()}
        model.mask_head = None if mask_head is None else mask_head.to(self.device, self.dtype)
        model.tag_heads = heads
        return model

    def _other_decoder(self, weights: Mapping[str, Tensor]) -> CLIPSegDecoder:
        decoder, _ = self._mask_parts()
        other = CLIPSegDecoder(decoder.config)
        try:
            other.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointMismatchError(f"these decoder weights do not fit {self.name!r}: {error}") from error
        return other.to(self.device, self.dtype).eval().requires_grad_(False)

    def _mask_parts(self) -> tuple[CLIPSegDecoder, ImageTransform]:
        if self.decoder is None or self.mask_transform is None:
            raise CapabilityError(
                f"the checkpoint {self.name!r} ranks tags but gives no masks: load one with a CLIPSeg decoder, "
                "such as CIDAS/clipseg-rd64-refined"
            )
        return self.decoder, self.mask_transform

    def _pixels(self, images: Sequence[Image.Image], transform: ImageTransform) -> Tensor:
        return torch.stack([transform(image) for image in images]).to(self.device, self.dtype)


def _check_fit(clip: CLIP, decoder: CLIPSegDecoder) -> None:
    config, encoder = decoder.config, clip.image_encoder
    if max(config.taps) >= encoder.depth:
        raise CheckpointMismatchError(
            f"the decoder reads blocks {config.taps} of the image encoder, which has {encoder.depth} (from 0 to "
            f"{encoder.depth - 1}): they are from different models"
        )
    expected = (encoder.width, clip.projection_dim, encoder.num_prefix_tokens)
    found = (config.tap_width, config.condition_dim, config.num_prefix_tokens)
    if found != expected:
        raise CheckpointMismatchError(
            f"the decoder takes taps {found[0]} wide, conditions {found[1]} wide and {found[2]} prefix tokens; "
            f"this CLIP gives {expected[0]}, {expected[1]} and {expected[2]}: they are from different models"
        )

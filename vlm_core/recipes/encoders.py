"""Where a recipe's encoders come from: pre-trained weights by hub name or directory, or from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_core.errors import CheckpointNotFoundError
from vlm_core.image_encoder import ImageEncoder
from vlm_core.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, TextTokenizer
from vlm_core.text_encoder import TextEncoder
from vlm_core.vocabulary import build_tokenizer, words_of


def make_image_encoder(source: str, args: Mapping[str, Any] | None, image_size: int | None) -> ImageEncoder:
    """A timm ViT: `scratch:NAME` with random weights and constructor arguments, else pre-trained ones.

    Raises:
        CheckpointNotFoundError, CheckpointMismatchError: it cannot be had; the message says why.
    """
    if source.startswith("scratch:"):
        kwargs = dict(args or {})
        if image_size is not None:
            kwargs.setdefault("img_size", image_size)
        encoder = ImageEncoder(source.removeprefix("scratch:"), kwargs)
        start_positions(encoder)
        return encoder
    return ImageEncoder.pretrained(source, image_size)


def start_positions(encoder: ImageEncoder) -> None:
    """Start the learned position grid of a tower from scratch as two-dimensional sines and cosines.

    timm starts it as noise of deviation 0.02, which is drowned by what a patch looks like: on the demo's scenes such
    a tower still saw nothing but colours after 800 updates.

    Source: Beyer et al., Better plain ViT baselines for ImageNet-1k, arXiv:2205.01580.
    """
    vit = encoder.vit
    assert vit.pos_embed is not None  # checked when the tower was adopted
    rows, columns = (int(n) for n in vit.patch_embed.grid_size)
    prefix = 0 if vit.no_embed_class else encoder.num_prefix_tokens
    quarter = encoder.width // 4
    frequency = 1.0 / (100.0 ** (torch.arange(quarter) / max(1, quarter - 1)))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    waves = [f(axis.flatten()[:, None] * frequency) for axis in (x, y) for f in (torch.sin, torch.cos)]
    with torch.no_grad():
        vit.pos_embed[:, prefix:, : 4 * quarter] = torch.cat(waves, dim=1)


def make_transform(encoder: ImageEncoder, image_size: int, *, crop: bool) -> ImageTransform:
    """How that encoder's pictures are prepared: its own mean and deviation, bicubic when cropped as CLIP's are."""
    try:
        mean, std = encoder.normalisation()
    except (AttributeError, KeyError, TypeError):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return ImageTransform(
        size_hw=(image_size, image_size),
        crop=crop,
        shortest_edge=image_size if crop else 0,
        resample=3 if crop else 2,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )


def make_text_encoder(
    source: str, args: Mapping[str, Any] | None, pooling: str, max_tokens: int, texts: Iterable[str]
) -> tuple[TextEncoder, TextTokenizer]:
    """A text encoder with its tokenizer.

    Args:
        source: `scratch:distilbert` (or another transformers model type) with random weights and a WordPiece
            vocabulary made from `texts`; else a hub id or a directory with weights and tokenizer files.
        args: configuration values for `scratch:`.
        pooling: "mean" or "first".
        max_tokens: longest text, special tokens included.
        texts: what a vocabulary is made from.

    Raises:
        CheckpointNotFoundError, CheckpointIncompleteError, CheckpointMismatchError: it cannot be had.
    """
    if source.startswith("scratch:"):
        tokenizer = build_tokenizer(words_of(texts), max_tokens)
        config = {
            "model_type": source.removeprefix("scratch:"),
            "vocab_size": len(tokenizer.tokenizer),
            "max_position_embeddings": max_tokens,
            "pad_token_id": tokenizer.tokenizer.pad_token_id,
            **(args or {}),
        }
        return TextEncoder(config, "first" if pooling == "first" else "mean"), tokenizer
    directory = Path(source)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        try:
            directory = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
        except Exception as error:  # the hub client raises its own, httpx's and the system's errors alike
            raise CheckpointNotFoundError(
                f"the text encoder {source!r} is no directory and could not be fetched ({type(error).__name__}). "
                "Check the name and the network, or give a local directory"
            ) from error
    encoder = TextEncoder.pretrained(str(directory), "first" if pooling == "first" else "mean")
    tokenizer = TextTokenizer.from_directory(
        directory, vocab_size=int(encoder.config.vocab_size), max_tokens=min(max_tokens, encoder.max_tokens)
    )
    return encoder, tokenizer

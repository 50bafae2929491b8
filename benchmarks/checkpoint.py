"""A CLIPSeg of the published size (ViT-B/16, 352 px) with random weights, in transformers' layout.

Random weights cost what learned ones cost. They are scaled so that logits have deviation near 1 and a phrase moves
them, as in `tests.core.factories`: freshly initialised ones would not tell a right implementation from a wrong one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, CLIPTokenizer, ViTImageProcessor

from tests.core.factories import processor_settings, rescale_logits

COLOURS = ("red", "blue", "green", "white")
THINGS = ("circle", "square", "triangle", "cross", "heart", "ring", "house", "player")
PHRASES = tuple(f"{colour} {thing}" for colour in COLOURS for thing in THINGS)
"""32 phrases of two words, of four tokens each with start and end."""
NEW_PHRASES = tuple(f"left {phrase}" for phrase in PHRASES)
"""32 others."""


def word_tokenizer(directory: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary that holds the words above whole, as the published one does."""
    directory.mkdir(parents=True, exist_ok=True)
    characters = [chr(c) for c in range(33, 127)]
    pieces = [*characters, *(c + "</w>" for c in characters)]
    merges: list[tuple[str, str]] = []
    for word in (*COLOURS, *THINGS, "left"):
        letters = [*word[:-1], word[-1] + "</w>"]
        joined = letters[0]
        for letter in letters[1:]:
            merges.append((joined, letter))
            joined += letter
    merges = list(dict.fromkeys(merges))
    pieces += dict.fromkeys(a + b for a, b in merges)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))


def make_checkpoint(directory: Path) -> Path:
    """Write it, unless it is there; 600 MB."""
    if (directory / "model.safetensors").is_file():
        return directory
    torch.manual_seed(0)
    tokenizer = word_tokenizer(directory / "_tokenizer")
    config = CLIPSegConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"patch_size": 16, "image_size": 224},
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config).eval()
    rescale_logits(model, tokenizer, 352)
    model.save_pretrained(directory)
    CLIPSegProcessor(ViTImageProcessor(**processor_settings(352)), tokenizer).save_pretrained(directory)
    return directory

"""Tiny checkpoints with random weights, written as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTImageProcessor,
)

from vlm_core.preprocess import IMAGENET_MEAN, IMAGENET_STD

PHRASES = ("left player", "a dog on the grass", "x")


def tiny_tokenizer(directory: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with one token a character."""
    directory.mkdir(parents=True, exist_ok=True)
    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))


def _towers(
    tokenizer: CLIPTokenizer, image_size: int, patch_size: int, depth: int = 5
) -> tuple[dict[str, Any], dict[str, Any]]:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    return text, vision


def processor_settings(size: int) -> dict[str, Any]:
    return {"size": {"height": size, "width": size}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}


def make_clipseg_directory(
    directory: Path,
    *,
    refined: bool = True,
    mask_size: int = 352,
    image_size: int = 224,
    patch_size: int = 16,
    taps: tuple[int, ...] = (1, 2, 3),
    conditional_layer: int = 0,
    depth: int = 5,
    reduce_dim: int = 16,
    seed: int = 0,
    rescale: bool = True,
) -> CLIPSegForImageSegmentation:
    """Save a tiny CLIPSeg with its processor, in the layout of `CIDAS/clipseg-rd64-refined`.

    Freshly initialised decoders answer with logits far from 1 that the text hardly moves. With `rescale`, FiLM
    is made to matter and the head is scaled so that logits have deviation near 1: only then does a comparison
    of logits say something about the condition.
    """
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(directory / "_tokenizer")
    text, vision = _towers(tokenizer, image_size, patch_size, depth)
    config = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=24,
        reduce_dim=reduce_dim,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        extract_layers=list(taps),
        conditional_layer=conditional_layer,
        use_complex_transposed_convolution=refined,
    )
    model = CLIPSegForImageSegmentation(config).eval()
    processor = CLIPSegProcessor(ViTImageProcessor(**processor_settings(mask_size)), tokenizer)
    if rescale:
        rescale_logits(model, tokenizer, mask_size)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model


def make_clip_directory(directory: Path, *, seed: int = 0) -> CLIPModel:
    """Save a tiny CLIP with its processor, in the layout of `openai/clip-vit-base-patch16`: tags only."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(directory / "_tokenizer")
    text, vision = _towers(tokenizer, image_size=64, patch_size=16)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    spread(model)
    images = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    model.save_pretrained(directory)
    CLIPProcessor(images, tokenizer).save_pretrained(directory)
    return model


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """Gemma's manner, as SigLIP 2 has it: one token a character, an end token after each text."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *(chr(c) for c in range(33, 127))]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def make_siglip_directory(directory: Path, *, patch_size: int = 16, image_size: int = 64, seed: int = 0) -> SiglipModel:
    """Save a tiny SigLIP with its processor, in the layout of `google/siglip2-base-patch16-224`: tags only.

    Temperature and bias are set so that probabilities are neither 0 nor 1.
    """
    torch.manual_seed(seed)
    tokenizer = siglip_tokenizer()
    tower = {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    text = {**tower, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 32, **ends}
    vision = {**tower, "num_hidden_layers": 3, "image_size": image_size, "patch_size": patch_size}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    spread(model)
    with torch.no_grad():
        model.vision_model.head.probe.normal_()
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-0.5)
    model.save_pretrained(directory)
    SiglipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Make every matrix matter: unit-variance maps instead of the initialisation's 0.02, and real biases."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embedding" not in name:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        elif "embedding" in name:
            parameter.normal_(std=0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)


@torch.no_grad()
def rescale_logits(model: CLIPSegForImageSegmentation, tokenizer: CLIPTokenizer, mask_size: int) -> None:
    spread(model)
    batch = tokenizer(list(PHRASES), padding=True, return_tensors="pt")
    pixels = torch.randn(1, 3, mask_size, mask_size).expand(len(PHRASES), -1, -1, -1)
    logits = model(pixel_values=pixels, **batch).logits
    head = model.decoder.transposed_convolution
    last = head[-1] if isinstance(head, torch.nn.Sequential) else head
    last.weight /= logits.std()
    last.bias.zero_()

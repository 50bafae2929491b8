"""Tiny encoders as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from vlm_core.demo.scenes import generate_scene
from vlm_core.image_encoder import ImageEncoder
from vlm_core.vocabulary import build_tokenizer, words_of


def pretrained_towers(folder: Path, *, dropout: float = 0.1) -> tuple[Path, Path]:
    """Directories as they are published: a timm ViT in timm's layout, a BERT with its tokenizer."""
    torch.manual_seed(0)
    image, text = folder / "vit", folder / "bert"
    image.mkdir()
    encoder = ImageEncoder("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2})
    save_file(encoder.vit.state_dict(), image / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 0,
        },
    }
    (image / "config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(words_of(text for scene in range(8) for text in generate_scene(scene).captions), 24)
    bert = BertConfig(
        vocab_size=len(tokenizer.tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(text)
    tokenizer.tokenizer.save_pretrained(text)
    return image, text

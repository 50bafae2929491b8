"""What the engine is compared with: transformers' own model, and the floor.

The floor is the least that any implementation must compute: the tapped blocks once for an image, and the decoder for
each prompt, with conditions that are there already. It is written with torch's functions on bare tensors: no modules,
no checks, no caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPSegForImageSegmentation

TAPS = (3, 6, 9)


class Transformers:
    """transformers' CLIPSeg as its documentation uses it: the image repeated for each prompt."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.model = CLIPSegForImageSegmentation.from_pretrained(directory, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.dtype = dtype

    @torch.inference_mode()
    def logits(self, image: Image.Image, prompts: Sequence[str]) -> Tensor:
        """(P, 352, 352), float32."""
        inputs = self.processor(text=list(prompts), images=[image] * len(prompts), padding=True, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        logits = self.model(**inputs).logits
        return logits.reshape(len(prompts), *logits.shape[-2:]).float()

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """(P, E), for the floor."""
        tokens = self.processor.tokenizer(list(prompts), padding=True, return_tensors="pt")
        return self.model.get_conditional_embeddings(batch_size=len(prompts), **tokens)


class Floor:
    """Tapped blocks once, then the decoder."""

    def __init__(self, reference: Transformers) -> None:
        self.weights = {name: value.detach() for name, value in reference.model.state_dict().items()}
        vision = reference.model.clip.vision_model.embeddings
        with torch.inference_mode():
            self.positions = vision.interpolate_pos_encoding(torch.zeros(1, 485, 768, dtype=reference.dtype), 352, 352)

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor, conditions: Tensor) -> Tensor:
        """(1, 3, 352, 352) and (P, E) -> (P, 352, 352), float32."""
        w, vision, decoder = self.weights, "clip.vision_model.", "decoder."
        x = F.conv2d(pixel_values, w[vision + "embeddings.patch_embedding.weight"], stride=16).flatten(2).mT
        x = torch.cat([w[vision + "embeddings.class_embedding"].expand(1, 1, -1), x], dim=1) + self.positions
        x = self._norm(x, vision + "pre_layrnorm")
        taps = []
        for index in range(max(TAPS) + 1):
            name = f"{vision}encoder.layers.{index}."
            x = x + self._attend(self._norm(x, name + "layer_norm1"), name + "self_attn.", 12)
            hidden = self._linear(self._norm(x, name + "layer_norm2"), name + "mlp.fc1")
            x = x + self._linear(hidden * torch.sigmoid(1.702 * hidden), name + "mlp.fc2")
            if index in TAPS:
                taps.append(x)
        prompts = len(conditions)
        scale = self._linear(conditions, decoder + "film_mul")[:, None]
        shift = self._linear(conditions, decoder + "film_add")[:, None]
        x = scale * self._linear(taps[2], decoder + "reduces.0") + shift
        for index in range(3):
            name = f"{decoder}layers.{index}."
            if index:
                x = x + self._linear(taps[2 - index], f"{decoder}reduces.{index}")
            x = self._norm(x + self._attend(x, name + "self_attn.", 4), name + "layer_norm1")
            hidden = F.relu(self._linear(x, name + "mlp.fc1"))
            x = self._norm(x + self._linear(hidden, name + "mlp.fc2"), name + "layer_norm2")
        cells = x[:, 1:].mT.reshape(prompts, 64, 22, 22)
        head = decoder + "transposed_convolution."
        cells = F.relu(F.conv2d(cells, w[head + "0.weight"], w[head + "0.bias"], padding=1))
        cells = F.relu(F.conv_transpose2d(cells, w[head + "2.weight"], w[head + "2.bias"], stride=4))
        cells = F.conv_transpose2d(cells, w[head + "4.weight"], w[head + "4.bias"], stride=4)
        return cells[:, 0].float()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _attend(self, x: Tensor, name: str, heads: int) -> Tensor:
        q, k, v = (self._linear(x, f"{name}{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self._linear(out, name + "out_proj")

"""CLIP: two encoders whose embeddings agree for an image and its description.

Source: Radford et al., arXiv:2103.00020. With a logit bias: SigLIP, Zhai et al., arXiv:2303.15343.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlm_core.errors import CheckpointMismatchError
from vlm_core.image_encoder import ImageEncoder
from vlm_core.projection import Projection, normalised
from vlm_core.text_encoder import TextEncoder

MAX_LOGIT_SCALE = math.log(100.0)
"""While training, the paper clips the temperature so that logits are never scaled by more than 100."""


class CLIP(nn.Module):
    """Dual encoder: a timm ViT and a text transformer, projected into one space of width E.

    SigLIP's encoders end in that space already, so nothing is projected, and it learned a bias beside the temperature:
    `sigmoid(temperature_scale * similarity + logit_bias)` is the probability that a text fits an image.

    `*_embeds` are projected and L2-normalised; `conditions` are projected and not normalised.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        projection_dim: int | None,
        *,
        logit_bias: bool = False,
    ) -> None:
        """Join two encoders with new projections and the paper's initial temperature, 0.07.

        Args:
            image_encoder, text_encoder: the two towers.
            projection_dim: E; None where both encoders end in one space already, as SigLIP's do.
            logit_bias: with SigLIP's bias, which starts at -10.

        Raises:
            CheckpointMismatchError: nothing to project with, and encoders of two widths.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.visual_projection: nn.Module
        self.text_projection: nn.Module
        if projection_dim is None:
            if image_encoder.width != text_encoder.width:
                raise CheckpointMismatchError(
                    f"without projections both encoders need one width, the image's has {image_encoder.width}, the "
                    f"text's {text_encoder.width}: they are from different models"
                )
            self.visual_projection = self.text_projection = nn.Identity()
        else:
            self.visual_projection = Projection(image_encoder.width, projection_dim)
            self.text_projection = Projection(text_encoder.width, projection_dim)
        self.projection_dim = image_encoder.width if projection_dim is None else projection_dim
        """E, the width of the shared space."""
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if logit_bias else None

    @property
    def temperature_scale(self) -> Tensor:
        """What similarities are multiplied with: exp(logit_scale), a scalar, as the checkpoint has it."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Clip the learned temperature to the paper's limit; training calls it after each update."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E), L2-normalised."""
        return self.embeds_of(self.image_encoder(pixel_values).pooled)

    def embeds_of(self, pooled: Tensor) -> Tensor:
        """What the image encoder pooled, (B, D) -> (B, E), L2-normalised."""
        return normalised(self.visual_projection(pooled))

    def visual_conditions(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E), projected and **not** normalised: a visual prompt for a CLIPSeg decoder."""
        out: Tensor = self.visual_projection(self.image_encoder(pixel_values).pooled)
        return out

    def conditions(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) twice -> (N, E), projected and **not** normalised: what a CLIPSeg decoder is conditioned with."""
        out: Tensor = self.text_projection(self.text_encoder(input_ids, attention_mask))
        return out

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) twice -> (N, E), L2-normalised."""
        return normalised(self.conditions(input_ids, attention_mask))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`logits_per_image`: (B, N), cosine similarities times the temperature's scale, plus SigLIP's bias.

        Its transpose is per text.
        """
        image, text = self.image_embeds(pixel_values), self.text_embeds(input_ids, attention_mask)
        logits = self.temperature_scale * image @ text.T
        return logits if self.logit_bias is None else logits + self.logit_bias

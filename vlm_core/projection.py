"""The linear maps from an encoder's pooled features into the space that images and texts share."""

from __future__ import annotations

from torch import Tensor, nn


class Projection(nn.Linear):
    """A linear map without bias, (…, in_features) -> (…, projection_dim), not normalised.

    Initialised with standard deviation `in_features ** -0.5`, as CLIP does, so that embeddings of
    unit-variance features start with unit variance. Source: CLIP, arXiv:2103.00020, figure 3.
    """

    def __init__(self, in_features: int, projection_dim: int) -> None:
        super().__init__(in_features, projection_dim, bias=False)
        nn.init.normal_(self.weight, std=in_features**-0.5)


def normalised(embeds: Tensor) -> Tensor:
    """Scale each row to unit L2 norm; shape is kept. A zero row stays zero."""
    return nn.functional.normalize(embeds, dim=-1)

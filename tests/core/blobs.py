"""Random masks as models make them and as they should not: blobs, rags, threads, holes, cut by the border."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage

from vlm_core.runs import RunMask

KINDS = ("noise", "rags", "blobs", "smooth", "threads", "ring", "checkers")


def draw_blobs(kind: str, size_hw: tuple[int, int], share: float, seed: int) -> np.ndarray:
    """A bool mask (H, W) of about a share of the image; what the larger scales leave is at least one pixel."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=size_hw)
    if kind == "checkers":
        return (np.indices(size_hw).sum(axis=0) % 2 == 0) & (rng.random(size_hw) < 0.3 + 0.7 * share)
    if kind == "threads":
        # The edges of blobs, a pixel wide.
        blobs = draw_blobs("blobs", size_hw, 0.5, seed)
        return blobs & ~ndimage.binary_erosion(blobs)
    if kind == "ring":
        y, x = np.indices(size_hw)
        distance = np.hypot(y - rng.uniform(0, size_hw[0]), x - rng.uniform(0, size_hw[1])) + rng.normal(0, 0.7)
        outer = rng.uniform(1, 1 + max(size_hw))
        return (distance < outer) & (distance > outer * rng.uniform(0, 0.97))
    field = ndimage.gaussian_filter(noise, {"noise": 0.0, "rags": 1.0, "blobs": 2.5, "smooth": 6.0}[kind])
    return field >= np.quantile(field, 1 - share)


def any_blobs(max_side: int = 70) -> st.SearchStrategy[RunMask]:
    """Any kind, from 1 x 1 px."""
    side = st.integers(1, max_side)
    return st.builds(
        lambda kind, size_hw, share, seed: RunMask.from_array(draw_blobs(kind, size_hw, share, seed)),
        st.sampled_from(KINDS),
        st.tuples(side, side),
        st.floats(0.02, 0.9),
        st.integers(0, 2**32 - 1),
    )

"""Laws of masks: sizes, thresholds, small parts and boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlm_core import InputError, masks
from vlm_core.runs import RunMask

any_mask = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


@given(any_mask)
def test_a_box_holds_the_mask_and_nothing_smaller_does(mask: masks.BoolMask) -> None:
    box = masks.bounding_box(mask)
    if box is None:
        assert not mask.any()
        return
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right]
    assert inside.sum() == mask.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@settings(deadline=None)  # the first call compiles
@given(any_mask, st.integers(0, 30))
def test_small_components_are_dropped_and_others_kept(mask: masks.BoolMask, area: int) -> None:
    kept = masks.binarise(mask.astype(np.float32), 0.5, area)
    expected = np.zeros(mask.shape, dtype=bool)
    for part in RunMask.from_array(mask).instances():
        if part.area_px >= area:
            expected |= part.to_array()
    assert np.array_equal(kept, expected)


def test_a_full_mask_has_the_images_box() -> None:
    assert masks.bounding_box(np.ones((3, 5), dtype=bool)) == (0, 0, 5, 3)


def test_the_threshold_itself_counts() -> None:
    assert masks.binarise(torch.tensor([[0.5, 0.49]]), 0.5).tolist() == [[True, False]]


def test_upsampling_keeps_constants_and_its_own_size() -> None:
    logits = torch.full((2, 3, 3), -1.5)
    torch.testing.assert_close(masks.upsample_logits(logits, (7, 11)), torch.full((2, 7, 11), -1.5))
    values = torch.randn(2, 3, 4)
    torch.testing.assert_close(masks.upsample_logits(values, (3, 4)), values)
    with pytest.raises(InputError, match="no pixels"):
        masks.upsample_logits(logits, (0, 4))


def test_alternatives_combine_by_their_maximum() -> None:
    probabilities = torch.tensor([[0.1, 0.9], [0.4, 0.2], [0.3, 0.3]])
    combined = masks.combine_alternatives(probabilities, [[0, 1], [2]])
    torch.testing.assert_close(combined, torch.tensor([[0.4, 0.9], [0.3, 0.3]]))
    with pytest.raises(InputError, match="at least one"):
        masks.combine_alternatives(probabilities, [[0], []])

"""Visual prompts: the picture that CLIP is shown, and parity of what it makes of it with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPSegForImageSegmentation

import vlm_core
from tests.core.factories import make_clip_directory, make_clipseg_directory
from vlm_core.errors import CapabilityError, InputError
from vlm_core.visual_prompts import highlight, mix_conditions

GREY = (0.5, 0.5, 0.5)


def checked(width: int, height: int) -> Image.Image:
    """A chessboard of single black and white pixels: blurred, it is grey."""
    board = np.indices((height, width)).sum(0) % 2 * 255
    return Image.fromarray(board.astype(np.uint8)).convert("RGB")


def test_the_object_keeps_its_pixels_and_the_rest_is_cropped_blurred_and_faded() -> None:
    image = checked(400, 300)
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:140, 200:300] = True
    shown = np.asarray(highlight(image, mask, fill=(1.0, 0.0, 0.0))).astype(int)
    # 10 % of 100 x 40 px on each side: 120 x 48 px, made square with the fill
    assert shown.shape == (120, 120, 3)
    top = (120 - 48) // 2
    assert (shown[:top] == (255, 0, 0)).all()
    inside = shown[top + 4 : top + 44, 10:110]
    assert np.array_equal(inside, np.asarray(image)[100:140, 200:300])
    # outside, a tenth of the blurred grey (127.5) and nine tenths of the fill
    assert np.abs(shown[top : top + 4] - (242.25, 12.75, 12.75)).max() <= 1.5


def test_a_box_shows_all_that_is_in_it_and_ends_at_the_borders() -> None:
    image = checked(60, 40)
    shown = highlight(image, (-5, 30.2, 20, 99), fill=GREY)
    left_over = np.asarray(shown)[(22 - 11) // 2 :][1:11, :20]
    assert np.array_equal(left_over, np.asarray(image)[30:40, :20])
    assert shown.size == (22, 22)


def test_a_photographs_scale_does_not_matter() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize(
        (352, 264), 3
    )
    large = small.resize((1408, 1056), 3)
    mask = np.zeros((264, 352), dtype=bool)
    mask[80:160, 100:220] = True
    a = np.asarray(highlight(small, mask), np.float32)
    b = highlight(large, mask.repeat(4, 0).repeat(4, 1)).resize((a.shape[1], a.shape[0]), Image.Resampling.BOX)
    assert np.abs(a - np.asarray(b, np.float32)).mean() < 3


@given(st.data())
def test_any_region_gives_a_square_that_holds_its_object(data: st.DataObject) -> None:
    width, height = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    x0, y0 = data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)))
    x1, y1 = data.draw(st.tuples(st.integers(x0 + 1, width), st.integers(y0 + 1, height)))
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    image = Image.new("RGB", (width, height), (10, 200, 30))
    by_mask, by_box = highlight(image, mask), highlight(image, (x0, y0, x1, y1))
    assert by_mask.width == by_mask.height >= max(x1 - x0, y1 - y0)
    assert np.array_equal(np.asarray(by_mask), np.asarray(by_box))
    kept = (np.asarray(by_mask) == (10, 200, 30)).all(-1).sum()
    assert kept == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.zeros((40, 60), dtype=bool), "marks no pixel"),
        (np.ones((60, 40), dtype=bool), r"\(40, 60\); got bool \(60, 40\)"),
        (np.ones((40, 60), dtype=np.uint8), "uint8"),
        ((10, 10, 10, 20), "holds no pixel"),
        ((70, 0, 80, 10), "holds no pixel"),
        ((0, 0, float("nan"), 10), "finite"),
        ((1, 2, 3), "mask, bool"),
        ("left", "mask, bool"),
    ],
)
def test_regions_that_cannot_be_used_are_named(region: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        highlight(checked(60, 40), region)  # type: ignore[arg-type]  # mistakes on purpose


@given(st.floats(0, 1))
def test_a_mix_lies_between_its_parts(weight: float) -> None:
    text, visual = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0])
    mixed = mix_conditions(text, visual, weight)
    torch.testing.assert_close(mixed, visual + weight * (text - visual))
    assert bool((mixed >= torch.minimum(text, visual) - 1e-5).all())
    assert bool((mixed <= torch.maximum(text, visual) + 1e-5).all())


@pytest.mark.parametrize("refined", [True, False])
def test_an_exemplars_logits_equal_transformers(tmp_path: Path, refined: bool) -> None:
    """The same condition and the same masks from the same picture, in float32."""
    make_clipseg_directory(tmp_path, refined=refined)
    model = vlm_core.load(tmp_path, device="cpu")
    reference = CLIPSegForImageSegmentation.from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(0)
    query, shown = (
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((320, 240), 3) for _ in range(2)
    )
    box = (40, 30, 200, 180)
    transform = model.mask_transform
    assert transform is not None
    conditional = transform(highlight(shown, box, fill=transform.mean))[None]
    with torch.no_grad():
        expected = reference(pixel_values=transform(query)[None], conditional_pixel_values=conditional)
    condition = model.encode_exemplars([(shown, box)])
    torch.testing.assert_close(condition, expected.conditional_embeddings, atol=1e-5, rtol=0)
    assert abs(float(condition.norm()) - 1) > 0.01  # not normalised
    ours = model.decode(model.encode_image(query), condition).logits[0]
    torch.testing.assert_close(ours, expected.logits.squeeze(), atol=1e-4, rtol=0)
    other = model.encode_exemplars([(shown, (0, 0, 30, 30))])
    assert float((other - condition).abs().mean()) > 0.01  # the region matters


def test_exemplars_need_a_checkpoint_with_masks_and_at_least_one(tmp_path: Path) -> None:
    make_clip_directory(tmp_path / "clip")
    with pytest.raises(CapabilityError):
        vlm_core.load(tmp_path / "clip", device="cpu").encode_exemplars([(checked(9, 9), (0, 0, 3, 3))])
    with pytest.raises(InputError, match="at least one"):
        vlm_core.load("demo", device="cpu").encode_exemplars([])


def test_many_exemplars_equal_single_ones() -> None:
    model = vlm_core.load("demo", device="cpu")
    shown = [(checked(50 + n, 40), (n, 0, 20 + n, 20)) for n in range(18)]
    together = model.encode_exemplars(shown)
    for row in (0, 15, 16, 17):
        torch.testing.assert_close(together[row], model.encode_exemplars(shown[row : row + 1])[0], atol=1e-4, rtol=1e-4)

"""Turned boxes and ellipses: of masks, as masks, and in percent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.blobs import any_blobs
from vlm_core.errors import InputError
from vlm_core.evaluate import iou
from vlm_core.runs import RunMask
from vlm_core.shapes import (
    Ellipse,
    EllipsePercent,
    RectanglePercent,
    RotatedBox,
    ellipse,
    points_to_percent,
    points_to_px,
    rotated_box,
)

SIZE_HW = (120, 160)
EMPTY = RunMask.from_array(np.zeros((5, 7), bool))

sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
coordinates = st.floats(-6000, 6000)
pairs = st.tuples(coordinates, coordinates)
lengths = st.tuples(st.floats(0.01, 6000), st.floats(0.01, 6000))
angles = st.floats(-360, 360)


def _shape(box: RotatedBox) -> shapely.Polygon:
    return shapely.Polygon(box.corners_xy_px())


def _corners(mask: RunMask) -> np.ndarray:
    y, x = mask.to_array().nonzero()
    return np.unique(np.concatenate([np.stack((x + i, y + j), axis=1) for i in (0, 1) for j in (0, 1)]), axis=0)


@given(st.lists(pairs, min_size=1, max_size=5), sizes)
def test_points_survive_as_percent(points: list[tuple[float, float]], size_hw: tuple[int, int]) -> None:
    np.testing.assert_allclose(points_to_px(points_to_percent(points, size_hw), size_hw), points, atol=1e-9)


def test_percent_are_of_width_and_height() -> None:
    np.testing.assert_array_equal(points_to_percent([[20, 20], [0, 80]], (80, 40)), [[50, 25], [0, 100]])
    with pytest.raises(InputError, match="0 x 5"):
        points_to_percent([[1, 1]], (5, 0))


@given(pairs, lengths, angles, sizes)
def test_boxes_survive_as_percent(
    centre: tuple[float, float], size: tuple[float, float], angle: float, size_hw: tuple[int, int]
) -> None:
    box = RotatedBox(centre, size, angle)
    back = RotatedBox.from_percent(box.to_percent(size_hw), size_hw)
    assert back.centre_xy_px == pytest.approx(centre, abs=1e-6)
    assert back.size_wh_px == pytest.approx(size)
    assert back.angle_deg == angle


@given(pairs, lengths, angles, sizes)
def test_ellipses_survive_as_percent(
    centre: tuple[float, float], radii: tuple[float, float], angle: float, size_hw: tuple[int, int]
) -> None:
    found = Ellipse.from_percent(Ellipse(centre, radii, angle).to_percent(size_hw), size_hw)
    assert found.centre_xy_px == pytest.approx(centre, abs=1e-6)
    assert found.radii_px == pytest.approx(radii)
    assert found.angle_deg == angle


def test_a_rectangle_in_percent_turns_about_its_top_left_corner() -> None:
    # 40 x 10 px at (30, 20) of 100 x 50, turned by a right angle: its width runs down, its height to the left
    box = RotatedBox.from_percent(RectanglePercent(30, 40, 40, 20, 90), (50, 100))
    np.testing.assert_allclose(box.corners_xy_px(), [(30, 20), (30, 60), (20, 60), (20, 20)], atol=1e-12)
    assert box.to_percent((50, 100)) == pytest.approx((30, 40, 40, 20, 90))
    assert box.to_mask((50, 100)).box_xyxy_px == (20, 20, 30, 50)
    assert RotatedBox.upright((2, 3, 7, 5)).to_percent((50, 100)) == pytest.approx((2, 6, 5, 4, 0))


def test_an_ellipse_in_percent_turns_about_its_centre() -> None:
    found = Ellipse.from_percent(EllipsePercent(50, 50, 10, 40, 90), (50, 100))
    assert found == Ellipse((50, 25), (10, 20), 90)
    assert found.to_mask((50, 100)).box_xyxy_px == (30, 15, 70, 35)


@settings(deadline=None, max_examples=200)
@given(any_blobs())
def test_the_box_of_a_mask_holds_its_pixels_and_no_box_is_smaller(mask: RunMask) -> None:
    box = rotated_box(mask)
    if box is None:
        assert not len(mask)
        return
    corners = _corners(mask)
    assert shapely.covers(shapely.buffer(_shape(box), 1e-7), shapely.points(corners)).all()
    assert -45 <= box.angle_deg < 45
    area = math.prod(box.size_wh_px)
    for angle in np.radians(np.arange(0, 90, 0.5)):
        turned = corners @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        assert area <= np.prod(np.ptp(turned, axis=0)) * (1 + 1e-9)


@settings(deadline=None, max_examples=200)
@given(st.tuples(st.floats(50, 110), st.floats(50, 70)), st.tuples(st.floats(20, 60), st.floats(6, 15)), angles)
def test_the_box_of_a_box_is_that_box(centre: tuple[float, float], size: tuple[float, float], angle: float) -> None:
    box = RotatedBox(centre, size, angle)
    mask = box.to_mask(SIZE_HW)
    assert mask.area_px == pytest.approx(math.prod(size), abs=sum(size))  # half a pixel at each side
    found = rotated_box(mask)
    assert found is not None
    # Pixels stand out of the box's sides by half a diagonal at most.
    assert _shape(found).hausdorff_distance(_shape(box)) < 2.5
    assert found.centre_xy_px == pytest.approx(centre, abs=1)


@settings(deadline=None, max_examples=200)
@given(st.tuples(st.floats(60, 100), st.floats(55, 65)), st.tuples(st.floats(6, 50), st.floats(6, 50)), angles)
def test_the_ellipse_of_an_ellipse_has_its_axes(
    centre: tuple[float, float], radii: tuple[float, float], angle: float
) -> None:
    drawn = Ellipse(centre, radii, angle)
    mask = drawn.to_mask(SIZE_HW)
    found = ellipse(mask)
    assert found is not None
    assert -45 <= found.angle_deg < 45
    # An edge may pass anywhere between two pixels' centres.
    assert found.centre_xy_px == pytest.approx(centre, abs=0.5)
    assert sorted(found.radii_px) == pytest.approx(sorted(radii), abs=0.5)
    if max(radii) > 1.2 * min(radii):
        # The axes' names depend on the quarter that the angle is in; the first one's direction does not.
        straight = round((angle - found.angle_deg) / 90) % 2 == 0
        assert found.radii_px[0 if straight else 1] == pytest.approx(radii[0], abs=0.5)
        assert abs((found.angle_deg - angle + 45) % 90 - 45) < 6
    assert iou(found.to_mask(SIZE_HW).to_array(), mask.to_array()) > 0.93


@settings(deadline=None)
@given(any_blobs())
def test_an_ellipse_has_the_moments_of_its_mask(mask: RunMask) -> None:
    found = ellipse(mask)
    if found is None:
        assert not len(mask)
        return
    y, x = (axis + 0.5 for axis in mask.to_array().nonzero())
    expected = np.cov(np.stack((x, y)), bias=True) + np.eye(2) / 12
    angle = math.radians(found.angle_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(turn @ np.diag(np.square(found.radii_px) / 4) @ turn.T, expected, atol=1e-6)
    assert found.centre_xy_px == pytest.approx((x.mean(), y.mean()))


def test_upright_rectangles_are_not_turned() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:20, 5:45] = True
    assert rotated_box(RunMask.from_array(mask)) == RotatedBox((25, 15), (40, 10), 0)
    found = ellipse(RunMask.from_array(mask))
    assert found is not None
    assert (found.centre_xy_px, found.angle_deg) == ((25, 15), 0)
    assert found.radii_px == pytest.approx((40 / math.sqrt(3), 10 / math.sqrt(3)))


def test_an_ellipse_holds_the_centres_on_its_edge_and_tiny_ones_hold_none() -> None:
    assert Ellipse((2.5, 2.5), (2, 1), 0).to_mask((5, 5)).to_array().sum(axis=1).tolist() == [0, 1, 5, 1, 0]
    assert not len(Ellipse((2.0, 2.0), (1e-320, 1e-310), 30).to_mask((5, 5)))
    assert not len(Ellipse((-9.0, 2.0), (3, 3), 0).to_mask((5, 5)))
    assert Ellipse((2.0, 2.0), (1e8, 1e8), 30).to_mask((5, 5)).area_px == 25


def test_nothing_has_neither_box_nor_ellipse() -> None:
    assert rotated_box(EMPTY) is None
    assert ellipse(EMPTY) is None


def test_lengths_that_none_can_have_are_refused() -> None:
    with pytest.raises(InputError, match=r"size_wh_px=\(-1, 2\)"):
        RotatedBox((0, 0), (-1, 2), 0)
    with pytest.raises(InputError, match=r"radii_px=\(0, 2\)"):
        Ellipse((0, 0), (0, 2), 0)
    with pytest.raises(InputError, match="not finite"):
        RotatedBox((math.nan, 0), (1, 2), 0)

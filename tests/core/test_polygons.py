"""Laws of outlines: valid, turned one way, and true to their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from tests.core.blobs import any_blobs
from vlm_core.errors import InputError
from vlm_core.evaluate import iou
from vlm_core.polygons import Polygon, polygons, signed_area_px
from vlm_core.rasterise import fill_rings
from vlm_core.runs import RunMask, fill_holes

tiny_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)).map(RunMask.from_array)
tolerances = st.sampled_from((0.0, 0.3, 0.5, 1.0, 2.0, 5.0))


def _mask(*rows: str) -> RunMask:
    return RunMask.from_array(np.array([[character == "#" for character in row] for row in rows]))


def _shape(polygon: Polygon) -> shapely.Polygon:
    return shapely.Polygon(polygon.outer, polygon.holes)


@settings(deadline=None, max_examples=200)
@given(any_blobs())
def test_a_component_over_100_px_survives_at_the_default_tolerance(mask: RunMask) -> None:
    parts = mask.instances(100)
    found = polygons(mask, min_area_px=100)
    assert len(found) == len(parts)
    for part, polygon in zip(parts, found, strict=True):
        assert iou(part.to_array(), polygon.to_mask(mask.size_hw).to_array()) >= 0.95


@settings(deadline=None, max_examples=200)
@given(st.one_of(any_blobs(), tiny_masks), tolerances, st.sampled_from((0.0, 0.95)))
def test_outlines_are_valid_inside_the_image_and_turn_one_way(mask: RunMask, tolerance: float, min_iou: float) -> None:
    height, width = mask.size_hw
    found = polygons(mask, tolerance_px=tolerance, min_iou=min_iou)
    assert len(found) == len(mask.instances())
    for polygon in found:
        shape = _shape(polygon)
        assert shape.is_valid
        assert polygon.tolerance_px <= tolerance
        assert signed_area_px(polygon.outer) > 0
        assert all(signed_area_px(hole) < 0 for hole in polygon.holes)
        assert polygon.area_px == pytest.approx(shape.area)
        assert shapely.box(0, 0, width, height).covers(shape)


@settings(deadline=None, max_examples=200)
@given(st.one_of(any_blobs(), tiny_masks))
def test_without_tolerance_a_polygon_is_exactly_its_part(mask: RunMask) -> None:
    for part, polygon in zip(mask.instances(), polygons(mask, tolerance_px=0), strict=True):
        np.testing.assert_array_equal(polygon.to_mask(mask.size_hw).to_array(), part.to_array())
        filled = fill_holes(part).to_array()
        assert len(polygon.holes) == ndimage.label(filled & ~part.to_array())[1]
        # every pixel of the part lies inside with all of its area
        y, x = part.to_array().nonzero()
        assert shapely.covers(shapely.buffer(_shape(polygon), 1e-9), shapely.box(x, y, x + 1, y + 1)).all()


@settings(deadline=None, max_examples=100)
@given(any_blobs(), st.sampled_from((0.5, 1.0, 3.0)))
def test_a_simplified_outline_stays_within_its_tolerance(mask: RunMask, tolerance: float) -> None:
    exact = polygons(mask, tolerance_px=0)
    for before, after in zip(exact, polygons(mask, tolerance_px=tolerance, min_iou=0), strict=True):
        assert len(after.outer) <= len(before.outer)
        assert len(after.holes) == len(before.holes)
        corners = shapely.points(np.concatenate((before.outer, *before.holes)))
        assert shapely.distance(corners, _shape(after).boundary).max() <= after.tolerance_px + 1e-9


def test_rectangles_are_four_corners_along_the_outer_edges() -> None:
    (polygon,) = polygons(_mask("......", ".###..", ".###..", "......"))
    assert sorted(map(tuple, polygon.outer.tolist())) == [(1, 1), (1, 3), (4, 1), (4, 3)]
    assert (polygon.holes, polygon.area_px, polygon.tolerance_px) == ((), 6, 1)
    (pixel,) = polygons(_mask("#"))
    assert pixel.area_px == 1


def test_a_slanted_edge_is_a_line() -> None:
    (polygon,) = polygons(RunMask.from_array(np.tri(60, dtype=bool)))
    assert len(polygon.outer) <= 5
    assert polygon.tolerance_px == 1


def test_a_hole_is_reported_and_its_pixels_stay_out() -> None:
    mask = _mask("#####", "#...#", "#.#.#", "#...#", "#####")
    frame, island = polygons(mask)
    assert len(frame.holes) == 1
    assert signed_area_px(frame.holes[0]) == -9
    assert frame.area_px == 16
    assert (island.area_px, island.holes) == (1, ())


def test_pixels_that_touch_at_a_corner_are_one_outline() -> None:
    (polygon,) = polygons(_mask("#.", ".#"), tolerance_px=0)
    assert _shape(polygon).is_valid
    assert polygon.area_px == 2 + 0.25**2  # two pixels and the bridge


def test_a_ring_that_corners_close_has_a_hole() -> None:
    (polygon,) = polygons(_mask(".#.", "#.#", ".#."))
    assert _shape(polygon).is_valid
    assert len(polygon.holes) == 1
    np.testing.assert_array_equal(polygon.to_mask((3, 3)).to_array(), _mask(".#.", "#.#", ".#.").to_array())


def test_many_holes_are_simplified_without_comparing_each_with_all() -> None:
    holes = np.ones((81, 81), bool)
    holes[1:-1:3, 1:-1:3] = False
    (polygon,) = polygons(RunMask.from_array(holes))
    assert len(polygon.holes) == 27 * 27
    assert _shape(polygon).is_valid
    assert iou(polygon.to_mask((81, 81)).to_array(), holes) >= 0.95


def test_nothing_has_no_outline() -> None:
    assert polygons(RunMask.from_array(np.zeros((4, 5), bool))) == []
    assert polygons(_mask("#.#"), min_area_px=2) == []
    assert not len(fill_rings([], (4, 5)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tolerance_px": -1.0}, "tolerance_px -1"),
        ({"tolerance_px": np.nan}, "tolerance_px nan"),
        ({"min_iou": 1.5}, "min_iou 1.5"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        polygons(_mask("#"), **options)


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=st.floats(-30, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_filling_a_ring_is_counting_its_windings_about_each_centre(ring: np.ndarray, size_hw: tuple[int, int]) -> None:
    filled = fill_rings([ring], size_hw)
    x, y = np.meshgrid(np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0]) + 0.5)
    closed = np.vstack((ring, ring[:1]))
    # The angle that the ring sweeps as seen from each centre.
    angles = np.unwrap([np.arctan2(to_y - y, to_x - x) for to_x, to_y in closed], axis=0)
    windings = np.round((angles[-1] - angles[0]) / (2 * np.pi))
    # Centres within rounding of an edge may go either way.
    with np.errstate(all="ignore"):  # shapely divides by the length of an edge, which may be none
        clear = shapely.distance(shapely.points(x, y), shapely.LineString(closed)) > 1e-6
    np.testing.assert_array_equal(filled.to_array()[clear], (windings != 0)[clear])
    # runs are as RunMask wants them
    again = RunMask.from_array(filled.to_array())
    np.testing.assert_array_equal(filled.starts, again.starts)
    np.testing.assert_array_equal(filled.stops, again.stops)


def test_outlines_of_very_many_edges_are_filled_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    star = 50 + (20 + 25 * (np.arange(200) % 2))[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    whole = fill_rings([star], (100, 100)).to_array()
    monkeypatch.setattr("vlm_core.rasterise._MAX_CROSSINGS", 1000)
    np.testing.assert_array_equal(fill_rings([star], (100, 100)).to_array(), whole)
    assert whole.any()


def test_rings_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        fill_rings([np.zeros((2, 2))], (5, 5))
    with pytest.raises(InputError, match="finite"):
        fill_rings([[[0, 0], [1, np.inf], [1, 1]]], (5, 5))

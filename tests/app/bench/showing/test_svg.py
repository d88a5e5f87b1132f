from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bench.showing.chart import Axis, Chart, Scale, Series
from app.bench.showing.svg import draw, linear_ticks, log_ticks

SVG = "{http://www.w3.org/2000/svg}"
AXES = {"x": Axis(label="bits"), "y": Axis(label="KL <nats>", scale=Scale.LOG)}


def _chart(*series: Series) -> Chart:
    return Chart(name="c", title="A & B", series=series, **AXES)


@pytest.mark.parametrize(
    ("top", "ticks"),
    [
        (7.3, (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (16, (0, 2, 4, 6, 8, 10, 12, 14, 16)),
        (100, (0, 20, 40, 60, 80, 100)),
        (0.013, (0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.012, 0.014)),
        (0, (0, 1)),
    ],
)
def test_linear_ticks_by_hand(top: float, ticks: tuple[float, ...]) -> None:
    assert linear_ticks(top) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "base", "ticks"),
    [
        (100, 131072, 2, tuple(2.0**n for n in range(6, 18))),
        (3, 60, 10, (2, 5, 10, 20, 50, 100)),
        (1e-5, 0.02, 10, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
        (5, 5, 10, (2, 5)),
    ],
)
def test_log_ticks_by_hand(low: float, high: float, base: int, ticks: tuple[float, ...]) -> None:
    assert log_ticks(low, high, base=base) == pytest.approx(ticks)


@given(st.floats(1e-9, 1e12), st.floats(1, 1e6))
@settings(max_examples=50)
def test_log_ticks_enclose_what_they_scale(low: float, factor: float) -> None:
    high = low * factor
    ticks = log_ticks(low, high, base=10)
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert list(ticks) == sorted(set(ticks))


def test_points_lie_where_the_axes_say() -> None:
    series = Series(name="s", points=[(0, 0.1), (4, 1), (8, 10)], labels=["a", "b", "c"])
    root = ElementTree.fromstring(draw(_chart(series)))
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"A & B", "bits", "KL <nats>", "s", "a", "b", "c", "0.1", "10", "8"} <= texts
    (line,) = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    (left, bottom), middle, (right, top) = places
    assert middle == pytest.approx(((left + right) / 2, (bottom + top) / 2))
    assert (left, right) == (76, 650)
    assert bottom > top


def test_zero_lies_on_a_logarithmic_axis() -> None:
    dots = Series(name="s", points=[(1, 0), (1, 0.1), (1, 10)], line=False)
    root = ElementTree.fromstring(draw(_chart(dots)))
    heights = [float(circle.attrib["cy"]) for circle in root.iter(f"{SVG}circle")]
    # the legend's comes last
    assert heights[0] == heights[1] > heights[2]


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        draw(_chart(Series(name="s", points=[])))


def test_labels_keep_out_of_each_others_way() -> None:
    """Three points close together: above, below, and left of it; a fourth has no room."""
    crowd = [(4, 1.0), (4, 1.001), (4, 1.002), (4, 1.003), (8, 10)]
    labels = ["one", "two", "three", "four", "far"]
    root = ElementTree.fromstring(draw(_chart(Series(name="s", points=crowd, labels=labels))))
    places = {
        text.text: (float(text.attrib["x"]), float(text.attrib["y"]))
        for text in root.iter(f"{SVG}text")
        if text.text in labels
    }
    assert set(places) == {"one", "two", "three", "far"}
    assert places["two"][0] == places["one"][0]
    assert places["two"][1] > places["one"][1] + 11
    assert places["three"][0] < places["one"][0] - 20


def test_a_bound_has_no_markers() -> None:
    bound = Series(name="s", points=[(0, 1), (8, 1)], bound=True)
    root = ElementTree.fromstring(draw(_chart(bound)))
    assert not list(root.iter(f"{SVG}circle"))
    assert "stroke-dasharray" in next(root.iter(f"{SVG}polyline")).attrib

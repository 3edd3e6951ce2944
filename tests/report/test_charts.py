"""Charts and heat maps of the page: what is drawn where, and what is left out."""

import pytest

from lit_edit.report.charts import Series, line_chart, thin
from lit_edit.report.heat import heat_map
from lit_edit.report.markup import write


def test_charts():
    one = Series("a", [(0, 0.0), (10, 0.5), (20, float("nan")), (30, 1.0)], band=[(0, 0.0, 0.2), (30, 0.9, 1.0)])
    chart = line_chart("T", [one, Series("b", [], 1)], "edits", "share", y_range=(0.0, 1.0))
    text = write(chart)
    titles = [element.text for element in chart.iter("title")]
    assert titles == ["a: 0.000 at 0 edits", "a: 0.500 at 10 edits", "a: 1.000 at 30 edits"], "no number, no marker"
    assert "nan" not in text and text.count('class="c0 band"') == 1
    heights = [
        float(mark.get("transform").split()[1].rstrip(")")) for mark in chart.iter("path") if "mark" in mark.get("class")
    ]
    assert heights[0] > heights[1] > heights[2] and heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.02)
    assert line_chart("T", [Series("b", [])], "edits", "share") is None
    for points in ([(5, 2.0)], [(0, 1e-9), (1, 1e9)], [(0, -4.0), (1, -4.0)], [(0, 0.0)], [(3, 1e300), (4, -1e300)]):
        drawn = write(line_chart("T", [Series("c", points)], "x", "y"))
        assert "inf" not in drawn and "nan" not in drawn.replace("dominant", "")


def test_a_long_curve_keeps_its_peak():
    points = [(float(at), 1.0) for at in range(5000)]
    points[777] = (777.0, -3.0)
    assert (777.0, -3.0) in thin(points) and len(thin(points)) <= 60


def test_heat_map():
    made = heat_map("T", [[0.0, None], [0.5, 1.0]], ["2", "4"], ["1", "2"], "row", "column")
    cells = [cell for cell in made.iter("rect") if cell.get("class") == "cell"]
    assert [cell.get("fill") for cell in cells] == ["#440154", "#21918c", "#fde725"], "nothing is drawn where nothing is"
    assert [title.text for title in made.iter("title")][1] == "row 4, column 1: 0.500"
    big = heat_map("T", [[0.5] * 400] * 300, [str(i) for i in range(300)], [str(i) for i in range(400)], "row", "column")
    assert len([cell for cell in big.iter("rect") if cell.get("class") == "cell"]) == 48 * 48

"""The pictures of TensorBoard's Images tab: what is in them, and that they can be read at the size of a card."""

import math

import pytest
import torch

from lit_edit.callbacks.cohorts import Check, Cohorts
from lit_edit.callbacks.drift_figures import overlap_figure, spectrum_figure
from lit_edit.callbacks.retention_figure import retention_figure
from lit_edit.figures import to_image
from lit_edit.spectrum import Spectrum, Subspace


def spectra(order, k=3):
    """Dominant directions of an original, and a weight in which they stand in another order."""
    side = torch.eye(len(order))
    return Subspace(side[:, :k], side[:, :k]), Spectrum(
        side[:, order], torch.arange(len(order), 0, -1).double(), side[:, order]
    )


def cells(panel):
    (image,) = panel.images
    return torch.tensor(image.get_array().tolist())


def labels(axis):
    axis.figure.canvas.draw()
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def test_overlap_shows_dominant_directions_that_were_outgrown():
    then, now = spectra([7, 6, 5, 4, 0, 2, 1, 3, 8, 9])
    made = overlap_figure(then, now, "T")
    left, right, *_ = made.axes
    for panel in (left, right):
        assert cells(panel).tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
        (line,) = panel.lines
        assert line.get_xdata()[0] == 3.5, "a line marks the end of the dominant ranks"
    assert right.get_xlabel() == "rank in the edited weight; dotted: k = 3"


def test_overlap_of_an_unedited_weight_is_a_diagonal():
    then, now = spectra(list(range(10)))
    left, right, *_ = overlap_figure(then, now, "T").axes
    assert torch.equal(cells(left), torch.eye(3)) and not left.lines and right.get_xlabel() == "rank in the edited weight"


def test_no_bright_cell_of_a_large_picture_is_lost():
    then, now = spectra([*range(100, 1000), *range(100)], k=100)
    left, *_ = overlap_figure(then, now, "T").axes
    shown = cells(left)
    assert max(shown.shape) < 300 and bool((shown.amax(1) == 1).all()), "every original direction is seen"
    assert left.get_xlim() == (0.5, 1000.5), "and named by its rank"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.2, 12.0, {"0.5", "1", "10"}), (1e-4, 100.0, {"0.001", "0.01", "1", "10"})]
)
def test_singular_values_are_plain_numbers(low, high, expected):
    values = torch.logspace(math.log10(high), math.log10(low), 64, dtype=torch.float64)
    panel = spectrum_figure(values, torch.cat([values[:-1] * 2, values.new_zeros(1)]), 4, "T").axes[0]
    found = labels(panel.yaxis)
    assert expected <= set(found) and len(found) <= 12
    assert not any("$" in text or "times" in text for text in found)


def cohorts(batches, looks):
    made = Cohorts(most=50, per_cohort=20)
    for batch in range(1, batches + 1):
        made.add(batch, [batch])
        if batch % (batches // looks) == 0:
            made.checks.append(Check(batch, 10 * batch, {at: 1 - at / 100 for at in made.positions()}))
    return made


def test_retention_has_axes_a_scale_and_numbers():
    made = retention_figure(cohorts(4, 2), "T")
    panel, scale = made.axes
    assert labels(panel.xaxis) == ["1", "2", "3", "4"] and labels(panel.yaxis) == ["20", "40"]
    assert [text.get_text() for text in panel.texts] == ["0.99", "0.98", "0.99", "0.98", "0.97", "0.96"]
    array = panel.images[0].get_array()
    assert array.shape == (2, 4) and array.mask.tolist() == [[False, False, True, True], [False] * 4]
    assert labels(scale.yaxis)[0] == "0.0" and labels(scale.yaxis)[-1] == "1.0"
    wide = retention_figure(cohorts(40, 20), "T", -1.0).axes
    assert not wide[0].texts and len(labels(wide[0].xaxis)) <= 6 and labels(wide[1].yaxis)[0].endswith("1.0")


def test_letters_are_large_enough_for_a_card():
    """TensorBoard shows a picture at 350 pixels: what is written into it must not come below nine of them."""
    then, now = spectra(list(range(10)))
    for made in (
        overlap_figure(then, now, "T"),
        spectrum_figure(now.sigma, now.sigma, 3, "T"),
        retention_figure(cohorts(4, 2), "T"),
    ):
        image = to_image(made)
        written = [panel.title for panel in made.axes] + [
            axis.label for panel in made.axes for axis in (panel.xaxis, panel.yaxis)
        ]
        smallest = min(text.get_fontsize() for text in written if text.get_text())
        assert image.shape[2] >= 600 and smallest / 72 / made.get_figwidth() * 350 >= 9

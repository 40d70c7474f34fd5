"""The figures of reports."""

from types import SimpleNamespace

import pytest

from gpt2_jax.ablation.report.figures import _band, _curves_of


@pytest.mark.parametrize(("steps", "marker", "width"), [((5,), "s", 4), ((5, 10), "", 0)])
def test_a_curve_of_one_evaluation_is_drawn_as_a_point(steps, marker, width):
    from matplotlib.figure import Figure

    style = {"color": "#000000", "marker": "s", "linestyle": "-"}
    run = SimpleNamespace(is_finished=True, curve={0: 9.0} | dict.fromkeys(steps, 3.0))
    variant = SimpleNamespace(name="a", runs=[run], is_baseline=False, losses={1: 3.0})
    left, right = Figure().subplots(1, 2)
    _curves_of([variant], {"a": style}, left)
    (line,) = left.lines
    assert line.get_marker() == marker and tuple(line.get_xdata()) == steps
    _band(right, style, {step: [1.0, 2.0, 3.0] for step in steps})
    assert right.collections[0].get_linewidth() == [width]

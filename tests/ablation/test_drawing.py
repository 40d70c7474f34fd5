"""Styles and axes of figures."""

import itertools

import numpy as np
import pytest

from gpt2_jax.ablation import diagnosis_figures
from gpt2_jax.ablation.diagnosis import BY_BLOCK, WHOLE, Diagnosis
from gpt2_jax.ablation.diagnosis_figures import styles_of as styles_of_models
from gpt2_jax.ablation.drawing import choose_styles, finish, panels
from gpt2_jax.ablation.report.figures import styles_of, wrapped
from gpt2_jax.ablation.report.variant import Analysis, Variant
from gpt2_jax.ablation.study import Study, crossed, grid
from gpt2_jax.ablation.study.labels import labels
from gpt2_jax.ablation.study.plan import SearchState

P, L = "placement.preset", "model.n_layer"
NAMES, DEPTHS = ("pre_ln", "deepnorm", "lns"), (4, 8, 16)


def of_models(models):
    return dict(zip(models, choose_styles(models), strict=True))


def of_diagnoses(models):
    found = styles_of_models([Diagnosis(name, depth, 0, {}, {}) for name, depth in models])
    return {model: found[model] for model in models}


def of_variants(_):
    variants = crossed(grid({L: DEPTHS}), grid({P: NAMES}))
    study = Study(variants, {P: "pre_ln"})
    names = labels(study)
    nothing = SearchState([], {}, True)
    made = [
        Variant(n, v, n, None, nothing, [], [], 0) for n, v in zip(names, variants, strict=True)
    ]
    drawn = styles_of(Analysis(study, made, 0, 0, True))
    return {(v[P], v[L]): drawn[name] for v, name in zip(variants, names, strict=True)}


@pytest.mark.parametrize("of", [of_models, of_diagnoses, of_variants])
def test_color_shows_the_placement_and_line_and_marker_the_depth(of):
    found = of(list(itertools.product(NAMES, DEPTHS)))
    for style, kind, place in (
        ("color", 0, NAMES),
        ("linestyle", 1, DEPTHS),
        ("marker", 1, DEPTHS),
    ):
        of_each = [{found[m][style] for m in found if m[kind] == value} for value in place]
        assert all(len(used) == 1 for used in of_each)
        assert len(set.union(*of_each)) == len(place)


def test_models_of_one_depth_differ_in_color_and_marker():
    found = choose_styles([(name, None) for name in range(30)])
    assert len({str(style) for style in found}) == 30
    assert found[0]["marker"] != found[1]["marker"] and found[0]["linestyle"] == "-"
    assert len({style["color"] for style in choose_styles([("pre_ln", d) for d in DEPTHS])}) == 3


def test_runs_of_one_placement_share_its_color():
    runs = [("pre_ln (runs/a)", 4), ("pre_ln (runs/b)", 8), ("lns (runs/c)", 4)]
    a, b, c = of_diagnoses(runs).values()
    assert a["color"] == b["color"] != c["color"] and a["linestyle"] != b["linestyle"]
    same = of_diagnoses([("pre_ln (runs/a)", 4), ("pre_ln (runs/b)", 4)])
    assert len({style["color"] for style in same.values()}) == 2


def translator(depth):
    """Returns a made-up diagnosis of an encoder and a decoder with a block more."""
    numbers = lambda n, without=(): {k: np.arange(1.0, n + 1) for k in BY_BLOCK if k not in without}
    towers = {"encoder": numbers(depth, ["cross_ratio"]), "decoder": numbers(depth + 1)}
    return Diagnosis("post_ln", depth + 1, 0, towers, dict.fromkeys(WHOLE, 2.0))


def drawn(monkeypatch, plot, *args):
    """Returns the title, the x label and the lengths of the lines of each visible panel."""
    saved = []
    monkeypatch.setattr(diagnosis_figures, "save", lambda figure, path: saved.append(figure))
    plot(*args)
    visible = [panel for panel in saved[0].axes if panel.axison or panel.get_title(loc="left")]
    return [
        (p.get_title(loc="left"), p.get_xlabel(), [len(line.get_xdata()) for line in p.get_lines()])
        for p in visible
    ]


def test_each_tower_has_its_panels(monkeypatch):
    """Cross-attention is only in the decoder, which also has the quantities of the whole model."""
    models = [translator(depth) for depth in (2, 4)]
    plots = diagnosis_figures.plot_by_block, diagnosis_figures.plot_by_depth
    encoder = drawn(monkeypatch, plots[0], models[:1], "blocks", "encoder")
    decoder = drawn(monkeypatch, plots[0], models[:1], "blocks", "decoder")
    assert {label for _, label, _ in encoder} == {"encoder block"}
    assert {length for _, _, lengths in encoder for length in lengths} == {2}
    assert {length for _, _, lengths in decoder for length in lengths} == {3}
    titles = [[title for title, _, _ in figure] for figure in (encoder, decoder)]
    assert titles[1] == [*titles[0], "cross-attention output / input"]
    depths = drawn(monkeypatch, plots[1], models, "depth")
    assert [label for _, label, _ in depths] == ["encoder blocks"] * 2 + ["decoder blocks"] * 3
    assert depths[-1][0] == "first step, Adam (SGD thin)"


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 1000.0], "log"), ([0.0, 10.0], "log"), ([-1.0, 10.0], "linear")]
)
def test_axis_is_logarithmic_unless_that_would_hide_values(values, scale):
    _, (panel,) = panels(1, 1)
    panel.plot([1, 2], values)
    finish(panel, "largest attention logit", "block", logarithmic=True)
    assert panel.get_yscale() == scale


def test_name_is_wrapped_at_commas():
    name = "n_layer=16,placement=completep,base_n_layer=4"
    lines = wrapped(name).splitlines()
    assert "".join(lines) == name
    assert lines == ["n_layer=16,", "placement=completep,", "base_n_layer=4"]

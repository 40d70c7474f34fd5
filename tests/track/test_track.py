"""metrics.jsonl, the plot, MFU and progress."""

import json
import math

import numpy as np
import pytest

from gpt2_jax.ablation import drawing
from gpt2_jax.errors import UserError
from gpt2_jax.track.metrics import MetricsFile, read_rows
from gpt2_jax.track.plot import LossCurve, _draw_losses, plot_loss
from gpt2_jax.track.progress import Progress
from gpt2_jax.track.throughput import mfu, peak_flops


def test_non_finite_values_are_null(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl", -1)
    file.write({"step": 1, "a": math.nan, "b": math.inf, "c": 0.5})
    file.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": 0.5}\n'


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo', "{}\n", "\0\0\0"])
def test_rows_after_the_checkpoint_and_truncated_lines_are_removed(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (0, 1, 2, 3)) + torn)
    file = MetricsFile(path, 2)
    file.write({"step": 3, "again": True})
    file.close()
    assert read_rows(path) == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_damaged_line_is_named_and_nothing_is_removed(tmp_path):
    path = tmp_path / "m.jsonl"
    text = '{"step": 1}\n{"step": null}\n{"step": 3}\n'
    path.write_text(text)
    with pytest.raises(UserError, match=r"m\.jsonl line 2 is damaged"):
        MetricsFile(path, 3)
    assert path.read_text() == text


def test_rows_can_be_read_before_they_are_synced(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl", -1)
    file.write({"step": 1})
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1}]


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v4", 275),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("cpu", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_flops_of_known_and_unknown_devices(kind, tflops):
    assert peak_flops(kind) == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_mfu_of_a_published_h100_run():
    """468K tokens/s of GPT-2 124M at T = 1024 on one H100 is 40.5 % (modded-nanogpt's record)."""
    flops = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert mfu(468_000, flops, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(0.405, abs=0.003)
    assert mfu(468_000, flops, "NVIDIA H100 80GB HBM3", 8) == pytest.approx(0.0506, abs=1e-3)
    assert mfu(468_000, flops, "cpu", 1) is None


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 0, "val/loss": 5.0}],
        [{"step": n, "train/loss": 5 / n, "val/loss": 6 / n} for n in range(1, 200)],
        [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": 3.0}],
    ],
)
def test_any_rows_can_be_drawn(tmp_path, rows):
    plot_loss(rows, tmp_path / "loss.png", "title", "subtitle")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_progress_in_a_log_file_is_a_line_at_intervals(monkeypatch, capsys):
    now = iter(np.arange(0.0, 1000.0, 1.0))
    monkeypatch.setattr("gpt2_jax.track.progress.time.monotonic", lambda: next(now))
    progress = Progress(100, 0, 10)
    progress.show(loss="2.5000")
    for step in range(1, 31):
        progress.advance_to(step)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 20
    assert lines[0].startswith("step ") and "loss 2.5000" in lines[0] and "tok/s" in lines[0]


@pytest.mark.parametrize(("n", "labels"), [
    (10, {"training", "validation"}), (100, {"training", "training, running mean", "validation"}),
])  # fmt: skip
def test_every_legend_entry_has_a_visible_line(n, labels):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    train = np.array([(step, 5 / (step + 1) + step % 3) for step in range(n)])
    _draw_losses(axes, train, np.array([(0, 5.0), (n, 1.0)]), "training")
    lines, names = axes.get_legend_handles_labels()
    assert set(names) == labels
    assert all((line.get_alpha() or 1) == 1 for line in lines)
    drawn = [line.get_ydata().tolist() for line in lines]
    assert all(drawn.count(one) == 1 for one in drawn)


@pytest.mark.parametrize(("n", "marker"), [(1, "o"), (2, "None")])
def test_a_single_training_loss_is_drawn_as_a_point(n, marker):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _draw_losses(axes, np.array([(step, 5.0) for step in range(n)]), np.zeros((0, 2)), "training")
    (line,) = axes.lines
    assert (line.get_marker(), line.get_linestyle()) == (marker, "-")


@pytest.mark.parametrize(("n", "whole"), [(5, True), (200, False)])
def test_all_losses_of_a_short_run_are_on_the_scale(n, whole):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    train = np.array([(step, 9.0 if step == 1 else 3.0) for step in range(1, n)])
    _draw_losses(axes, train, np.array([(0, 20.0)]), "training")
    assert (axes.get_ylim()[1] >= 9.0) == whole
    assert axes.get_ylim()[1] < 20  # the validation before the first step
    assert axes.get_legend_handles_labels()[1][-1] != "validation"


def test_steps_on_the_axis_are_whole(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, path: drawn.append(f) or save(f, path))
    plot_loss([{"step": i, "train/loss": 3.0 - i} for i in (1, 2)], tmp_path / "loss.png", "a", "b")
    ticks = drawn[0].axes[0].get_xticks()
    assert ticks.tolist() == ticks.astype(int).tolist()


@pytest.mark.parametrize(("smoothing", "name"), [
    (0.0, "training"), (0.1, "training (label smoothing 0.1)"),
])  # fmt: skip
def test_legend_says_that_the_training_loss_has_label_smoothing(
    tmp_path, monkeypatch, smoothing, name
):
    from matplotlib.axes import Axes

    labels = []
    plot = Axes.plot
    keep = lambda *args, **options: labels.append(options["label"]) or plot(*args, **options)
    monkeypatch.setattr(Axes, "plot", keep)
    rows = [{"step": n, "train/loss": 1.0, "val/loss": 1.0} for n in (1, 2)]
    plot_loss(rows, tmp_path / "loss.png", "title", "subtitle", "word", smoothing)
    assert labels == [name, "validation"]


def test_failed_picture_is_drawn_again(tmp_path):
    tries = []

    def picture():
        tries.append(len(tries))
        if len(tries) == 1:
            raise OSError("no space")
        return [{"step": 1, "train/loss": 1.0}], "title", "subtitle", "word", 0.1

    curve = LossCurve(tmp_path / "loss.png", picture)
    curve.draw(1)
    curve.draw(1, wait=True)
    curve.draw(1, wait=True)
    curve.close()
    assert tries == [0, 1] and (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("name", ["文字.txt", "a\udcffb", "a\0\x1b[31m\tb"])
def test_names_with_characters_missing_from_the_font_can_be_drawn(tmp_path, recwarn, name):
    plot_loss([{"step": 1, "train/loss": 1.0}], tmp_path / "loss.png", name, name)
    assert not recwarn.list


def test_names_with_dollar_signs_are_drawn_literally(tmp_path):
    """Parsed as a formula, a$b_{$ would be an error."""
    plot_loss([{"step": 1, "train/loss": 1.0}], tmp_path / "loss.png", "a$b_{$", "c$^$")
    figure, (panel,) = drawing.panels(1, 1)
    panel.plot([1, 2], [3, 4], label="x$_{$")
    panel.set_xscale("log", base=2)
    drawing.powers_of_two(panel.xaxis)
    panel.set_yticks([3], ["y$_{$"])
    drawing.plain(panel, "t$_{$", "l$_{$")
    drawing.legend(figure, [panel])
    drawing.save(figure, tmp_path / "figure", (".png",))
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "figure.png"}
    assert panel.xaxis.get_major_formatter()(2.0**-11, None) == "2⁻¹¹"

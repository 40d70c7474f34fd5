"""Per-block diagnostics in training: their values, their rows, and the host's reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.diagnostics import figures
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train import loop
from gpt2_jax.train.diagnostics import by_block, diagnostic_rows, skip_costs
from gpt2_jax.train.loss import mean_loss
from gpt2_jax.train.storage.open_run import open_run
from tests.placements import FEW
from tests.runs import config
from tests.tools import tiny, tiny_model
from tests.train.test_loop import Reads

TOKENS = jax.random.randint(jax.random.key(5), (3, 13), 0, 11)
OBSERVED = {"stream_rms", "attn_ratio", "mlp_ratio", "cosine", "entropy", "largest_score"}


@pytest.fixture(scope="module")
def diagnosed(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe") / "run"
    made = config(
        text_file,
        train__steps=25,
        track__diagnostics_every=8,
        train__checkpoint_every=8,
        train__keep_checkpoints=9,
    )
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        assert loop.train(made, str(workdir)) == 0
    return made, workdir, reads


def test_rows_have_every_diagnostic_of_every_block(diagnosed):
    rows = {row["step"]: row for row in read_rows(diagnosed[1] / "metrics.jsonl")}
    assert sorted(rows) == [0, 5, 8, 10, 15, 16, 20, 24, 25]
    blocks = ("block_01", "block_02")
    for step, row in rows.items():
        names = {name for name in row if "/block" in name}
        due = OBSERVED | {"skip_cost"} | ({"grad_norm"} if step else set())
        want = {f"depth/{figure}/{block}" for figure in due for block in blocks}
        assert names == (want if step in (0, 8, 16, 24, 25) else set())
    squares = sum(rows[8][f"depth/grad_norm/{block}"] ** 2 for block in blocks)
    assert 0.1 < squares**0.5 / rows[8]["train/grad_norm"] < 1.0


def test_diagnostics_use_the_parameters_after_the_step(diagnosed):
    made, workdir, _ = diagnosed
    run = open_run(str(workdir), 16, devices=1)
    data = made.data
    corpus, _ = open_corpus(data.source, data.val_source, data.tokenizer, data.val_fraction)
    batch = Sampler(corpus.train, 12, 8, made.seed).batch(15)
    want = figures(run.model_def, run.params, jnp.asarray(batch.inputs_BT[:4]), 16)
    (row,) = [r for r in read_rows(workdir / "metrics.jsonl") if r["step"] == 16]
    for name, values in want.items():
        got = [row[f"depth/{name}/block_{l:02}"] for l in (1, 2)]
        np.testing.assert_allclose(got, values, rtol=1e-4)


def test_host_reads_diagnostics_with_the_metrics(diagnosed):
    """Nine rows: eight with metrics, and one at the start with only diagnostics. 4 evaluations."""
    reads = diagnosed[2]
    assert reads.implicit == 0
    assert reads.explicit.count("metrics") == 8 + 1
    assert reads.explicit.count("sums") == 4


@pytest.mark.parametrize("ablated", [0, 1, 2])
def test_ablated_block_equals_a_missing_block(ablated):
    built, params = tiny_model(model__n_layer=3, model__unroll=False)
    kept = [l for l in range(3) if l != ablated]
    config = tiny(model__n_layer=2)
    fewer = define_model(config.model, config.placement)
    blocks = jax.tree.map(lambda x: x[np.array(kept)], params["blocks"]["all"])
    less = params | {"blocks": params["blocks"] | {"all": blocks}}
    loss = lambda model, p: float(mean_loss(p, model, Batch(TOKENS), None, 0))
    got = skip_costs(built, params, Batch(TOKENS), 0)
    assert got.shape == (3,)
    assert got[ablated] == pytest.approx(loss(fewer, less) - loss(built, params), abs=1e-5)
    assert abs(got[ablated]) > 1e-3


@pytest.mark.parametrize("name", FEW)
def test_skip_costs_are_not_zero(name):
    built, params = tiny_model(placement__preset=name, model__n_layer=4, model__unroll=False)
    costs = jax.jit(lambda p: skip_costs(built, p, Batch(TOKENS), 700))(params)
    assert np.isfinite(costs).all() and (np.abs(costs) > 1e-4).all()


def test_deeper_models_are_diagnosed_on_fewer_sequences():
    def rows(**changes):
        made = tiny(**changes)
        return diagnostic_rows(made.train, made.model.n_layer, made.mesh.data)

    assert rows(train__batch_size=64, mesh__data=2, model__n_layer=4) == (8, 8)
    assert rows(train__batch_size=64, mesh__data=8, model__n_layer=4) == (8, 2)
    assert rows(train__batch_size=4, mesh__data=1, model__n_layer=12) == (4, 1)
    # No more than a device processes at a time.
    assert rows(train__batch_size=64, mesh__data=2, train__accumulation=16) == (2, 2)


def test_block_names_sort_in_order():
    names = list(by_block({"x": np.arange(120.0)}))
    assert names == sorted(names) and names[0] == "depth/x/block_001"
    assert by_block({"x": np.array([2.5])}) == {"depth/x/block_01": 2.5}

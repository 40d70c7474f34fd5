"""Batches are a pure function of (seed, step), and an epoch has every example once."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.data.examples.encode import Limits
from gpt2_jax.data.examples.prepare import ExampleSources, open_examples
from gpt2_jax.data.examples.store import examples_in_memory, window_examples
from gpt2_jax.data.layout.assemble import Assembler
from gpt2_jax.data.layout.masking import Masking, make_masking
from gpt2_jax.data.layout.packed import PackedLayout, pack
from gpt2_jax.data.layout.padded import OrderedLayout, PaddedLayout, longest
from gpt2_jax.data.layout.shape import Shape
from gpt2_jax.data.pieces import PieceEncoder
from gpt2_jax.data.shards import Tokens
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.data.tokenizer_protocol import Specials
from gpt2_jax.errors import UserError
from tests import tools

SPECIALS = Specials(0, 1, 2, None, None, 3, frozenset({0, 1, 2, 3}), 1)
MASKING = Masking(0, 3, np.arange(3000) < 4)
N = 300


def pairs(n=N, longest=15):
    """Returns pairs of random lengths, whose ids are 10 + their number."""
    rng = np.random.default_rng(0)
    columns = [
        {
            "source": [10 + i] * rng.integers(1, longest),
            "target": [10 + i] * rng.integers(1, longest),
        }
        for i in range(n)
    ]
    return Assembler(examples_in_memory("translate", columns), SPECIALS)


def texts(n=N, longest=30, task="mlm"):
    rng = np.random.default_rng(0)
    columns = [{"inputs": [10 + i] * rng.integers(1, longest)} for i in range(n)]
    masking = MASKING if task == "mlm" else None
    return Assembler(examples_in_memory(task, columns), SPECIALS, masking=masking)


def padded(build, seed=5):
    return PaddedLayout(build, (4, 8, 32), 4, seed)


def packed(build, seed=5, rows=7):
    return PackedLayout(build, 32, rows, seed)


MAKE = {"padded": padded, "packed": packed}


def seen(batch):
    """Returns how often each pair is in a batch, after checking that it is complete."""
    found = Counter()
    for r in range(len(batch.source.ids_BT)):
        for n in range(1, batch.source.segments_BT[r].max() + 1):
            ids = batch.source.ids_BT[r, batch.source.segments_BT[r] == n]
            targets = batch.targets_BT[r, batch.target.segments_BT[r] == n]
            assert len(ids) and set(ids.tolist()) == set(targets.tolist())
            found[int(ids[0]) - 10, len(ids), len(targets)] += 1
    return found


def all_pairs(build):
    return Counter({(i, *pair): 1 for i, pair in enumerate(build.examples.lengths.tolist())})


def test_padded_epoch_has_every_example_once():
    build = pairs()
    layout = padded(build)
    n = layout.batches_per_epoch
    orders = []
    for epoch in (0, 1):
        batches = [layout.batch(step) for step in range(epoch * n, (epoch + 1) * n)]
        assert sum(map(seen, batches), Counter()) == all_pairs(build)
        orders.append([batch.source.ids_BT[0, 0] for batch in batches])
    assert orders[0] != orders[1]


def test_packed_epoch_has_every_example_once():
    build = pairs()
    layout = packed(build, rows=1)
    n = layout.rows_per_epoch
    orders = []
    for epoch in (0, 1):
        batches = [layout.batch(step) for step in range(epoch * n, (epoch + 1) * n)]
        assert sum(map(seen, batches), Counter()) == all_pairs(build)
        orders.append([batch.source.ids_BT[0, 0] for batch in batches])
    assert orders[0] != orders[1]
    several = packed(build, rows=7)  # the same rows, across epochs
    rows = [several.batch(step).source.ids_BT for step in range(2 * n // 7)]
    expected = [layout.batch(step).source.ids_BT for step in range(2 * n // 7 * 7)]
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(expected))


def test_padded_rows_fit_their_bucket():
    build = pairs()
    layout = padded(build)
    assert layout.shapes == (Shape(4, (4, 4)), Shape(4, (8, 8)), Shape(4, (32, 32)))
    for step in range(layout.batches_per_epoch):
        batch, shape = layout.batch(step), layout.shape(step)
        assert batch.source.ids_BT.shape == (shape.rows, shape.lengths[0])
        assert batch.target.ids_BT.shape == (shape.rows, shape.lengths[1])
        shorter = [s.lengths[0] for s in layout.shapes if s.lengths < shape.lengths]
        lengths = np.maximum(
            *((side.segments_BT > 0).sum(axis=1) for side in (batch.source, batch.target))
        )
        assert (lengths[lengths > 0] > max(shorter, default=0)).all()


def test_unused_buckets_have_no_shape():
    layout = PaddedLayout(texts(longest=8), (8, 9, 10), 8, 0)
    assert layout.shapes == (Shape(8, (8,)),)


def test_sides_of_different_lengths():
    build = pairs()
    layout = PaddedLayout(build, ((16, 4), (32, 16)), 4, 0)
    assert layout.shapes == (Shape(4, (16, 4)), Shape(4, (32, 16)))
    found = sum((seen(layout.batch(s)) for s in range(layout.batches_per_epoch)), Counter())
    assert found == all_pairs(build)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("make", [pairs, texts])
def test_batches_are_a_function_of_seed_and_step(name, make):
    layout, again, other = (MAKE[name](make(), seed) for seed in (5, 5, 6))
    for step in range(3):
        layout.batch(step)
    flat = lambda batch: np.concatenate([np.ravel(leaf) for leaf in leaves(batch)])
    for step in (10**9, 2, 10**9 + 1):
        np.testing.assert_array_equal(flat(layout.batch(step)), flat(again.batch(step)))
    different = lambda a, b: a.shape != b.shape or (a != b).any()
    assert any(different(flat(layout.batch(s)), flat(other.batch(s))) for s in range(3))


def leaves(batch):
    for leaf in batch:
        if isinstance(leaf, tuple):
            yield from leaves(leaf)
        elif leaf is not None:
            yield leaf


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("make", [pairs, texts])
def test_processes_read_their_own_rows(name, make):
    layout = MAKE[name](make())
    for step in range(8):
        whole = list(leaves(layout.batch(step)))
        n = len(whole[0])
        parts = [list(leaves(layout.batch(step, slice(a, b)))) for a, b in ((0, 3), (3, n))]
        scattered = list(leaves(layout.batch(step, np.array([n - 1, 0]))))
        for i, leaf in enumerate(whole):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), leaf)
            np.testing.assert_array_equal(scattered[i], leaf[[n - 1, 0]])


def test_masks_change_from_epoch_to_epoch():
    layout = PackedLayout(texts(4, 20), 64, 2, 0)
    assert layout.rows_per_epoch == 1
    first, second = layout.batch(0).weights_BT  # the same row in epochs 0 and 1
    assert (first != second).any()


def test_ordered_examples_are_all_there_once_and_in_order():
    build = pairs(10)
    layout = OrderedLayout(build, longest(build), 4)
    assert layout.n_batches == 3 and layout.shapes == (Shape(4, (16, 16)),)
    batches = [layout.batch(number) for number in range(3)]
    first = [int(row[0]) - 10 for batch in batches for row in batch.source.ids_BT]
    assert first == [*range(10), -10, -10] and list(layout.examples(2)) == [8, 9]
    assert not batches[2].weights_BT[2:].any() and batches[2].weights_BT[:2].any(axis=1).all()
    np.testing.assert_array_equal(
        layout.batch(1, slice(1, 3)).source.ids_BT, batches[1].source.ids_BT[1:3]
    )


def test_orders_have_fixed_literal_values():
    """A change of the data order would change every run."""
    build = pairs()
    first = lambda layout, step: layout.batch(step).source.ids_BT[:6, 0].tolist()
    found = [first(make(build), step) for make in (padded, packed) for step in (0, 10**9)]
    assert found == PINNED


PINNED = [
    [213, 307, 209, 153],
    [10, 60, 215, 154],
    [97, 268, 286, 209, 229, 141],
    [108, 255, 304, 81, 93, 128],
]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=80),
)
def test_packing_has_every_example_once_and_fits(lengths):
    lengths_NS = np.array(lengths)
    order, starts = pack(lengths_NS, (9, 7))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert starts[0] == 0 and starts[-1] == len(order) and (np.diff(starts) > 0).all()
    for a, b in pairwise(starts):
        assert (lengths_NS[order[a:b]].sum(axis=0) <= (9, 7)).all()


def test_packing_is_stored_with_the_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = open_examples(ExampleSources("translate", "toy:language"), "bytes", Limits((128, 128)))
    make = lambda: packed_language(data, 0)
    first = make()
    (stored,) = data.splits["train"].folder.glob("packed_*.npz")
    monkeypatch.setattr("gpt2_jax.data.layout.packed.pack", None)
    np.testing.assert_array_equal(make().batch(3).targets_BT, first.batch(3).targets_BT)
    assert first.real_share > 0.9
    stored.write_bytes(b"damaged")
    with pytest.raises(TypeError):  # packs again
        make()


def packed_language(data, seed):
    return PackedLayout(Assembler(data.splits["train"], data.pieces.specials), 128, 4, seed)


def test_batches_are_the_same_in_another_process(tmp_path):
    code = (
        "import hashlib\n"
        "from tests.data.layout.test_layouts import *\n"
        "data = open_examples(\n"
        "    ExampleSources('translate', 'toy:language'), 'bpe:300', Limits((128, 128)))\n"
        "parts = leaves(packed_language(data, 3).batch(77))\n"
        "print(hashlib.sha256(b''.join(leaf.tobytes() for leaf in parts)).hexdigest())"
    )
    found = {
        tools.run(
            "-c", code, tmp=tmp_path, PYTHONHASHSEED=seed, XDG_CACHE_HOME=str(tmp_path / seed)
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop().strip()) == 64


def test_steps_of_epochs():
    build = pairs()
    assert padded(build).steps(2) == 2 * padded(build).batches_per_epoch
    layout = packed(build)
    assert layout.steps(1) == -(-layout.rows_per_epoch // 7)


def test_windows_of_a_text():
    pieces = PieceEncoder(load_tokenizer("gpt2"))
    examples = window_examples(Tokens([np.arange(23, dtype=np.uint16)]), 5, pieces.frame)
    assert len(examples) == 4 and examples.ragged["inputs"][3].tolist() == [15, 16, 17, 18, 19]
    assert examples.lengths.tolist() == [[5]] * 4
    layout = PaddedLayout(Assembler(examples, SPECIALS, masking=MASKING), (5,), 4, 0)
    assert layout.shapes == (Shape(4, (5,)),) and layout.real_share == 1
    with pytest.raises(UserError, match=r"3 tokens, too few for data\.seq_len=5"):
        window_examples(Tokens([np.arange(3, dtype=np.uint16)]), 5, pieces.frame)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: padded(texts(longest=40)),
            r"example \d+ has \(\d+,\) tokens, but rows have",
        ),
        (lambda: PackedLayout(pairs(), 8, 2, 0), r"tokens, but rows have \(8, 8\)"),
        (
            lambda: PaddedLayout(texts(), (8, 8, 32), 9, 0),
            r"data\.lengths=\(8, 8, 32\) must",
        ),
        (lambda: PaddedLayout(texts(), (), 9, 0), r"data\.lengths=\(\) must increase"),
        (lambda: PaddedLayout(pairs(), ((8, 8, 8),), 9, 0), r"or 2 of them, for source and tar"),
        (lambda: make_masking(PieceEncoder(load_tokenizer("gpt2")), 0), "gpt2 has no mask token"),
    ],
)
def test_bad_values_are_one_line_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "task, scalars", [("classify", ["label"]), ("answer", ["start", "end", "window"])]
)
def test_tasks_with_a_target_per_row_are_not_packed(task, scalars):
    columns = {"inputs": [1], "types": [0], **dict.fromkeys(scalars, 1)}
    build = Assembler(examples_in_memory(task, [columns]), SPECIALS)
    with pytest.raises(UserError, match=rf"data\.layout=packed .*task\.name={task}.*padded"):
        packed(build)


needs_tasks = pytest.mark.skipif(
    not (tools.SHARED / "tasks").exists(), reason="needs ../shared/data/tasks"
)


@needs_tasks
def test_packed_multi30k_wastes_less_than_8_percent():
    folder = tools.SHARED / "tasks" / "multi30k_en_de"
    sources = ExampleSources("translate", f"{folder}/train.{{en,de}}.gz")
    data = open_examples(sources, "bpe:4000", Limits((64, 64)))
    build = Assembler(data.splits["train"], data.pieces.specials)
    assert PackedLayout(build, 64, 47, 0).real_share > 0.92
    buckets = PaddedLayout(build, (16, 24, 32, 64), 64, 0).real_share
    assert 0.2 < PaddedLayout(build, (64,), 64, 0).real_share < 0.3 < 0.7 < buckets < 0.8

"""The step compiled for TPUs and GPUs that are not there; needs the extras `plan-tpu`, `plan-gpu`.

Exact byte counts are those of the parameters. Other limits are figures of the first compilation,
with jax 0.10.2, and the peaks measured on an H100 are those in docs/guides/gpu.md.
"""

import json
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gpt2_jax.config.convert import to_dict
from gpt2_jax.errors import UserError
from gpt2_jax.hlo.collectives import find_collectives
from gpt2_jax.hlo.text import parse
from gpt2_jax.scale.chips import CHIPS
from gpt2_jax.scale.compiler import ABSENT, TooLarge, compile_elsewhere
from gpt2_jax.scale.estimate import estimate
from gpt2_jax.scale.figures import figures_of
from gpt2_jax.scale.targets import absent_devices, parse_target, require_compiler
from gpt2_jax.train.compiled_step import compile_step
from tests.tools import run, tiny

GIB = 2**30
WIDTH, LAYERS, VOCAB, SEQ = 256, 4, 512, 128
SMALL = {
    "model__n_layer": LAYERS,
    "model__n_head": 4,
    "model__n_embd": WIDTH,
    "model__n_positions": SEQ,
    "model__vocab_size": VOCAB,
    "model__dtype": "bfloat16",
    "model__unroll": False,
    "data__seq_len": SEQ,
    "train__batch_size": 16,
}
MATRICES, WTE, WPE = LAYERS * 12 * WIDTH**2, VOCAB * WIDTH, SEQ * WIDTH

pytestmark = pytest.mark.plan


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Lets this process load libtpu next to others, and compiles afresh."""
    before = jax.config.jax_enable_compilation_cache
    os.environ.update({name: ABSENT[name] for name in ABSENT if "TPU" in name})
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def machine_of(target):
    machine = parse_target(target)
    try:
        require_compiler(machine)
    except UserError as error:
        pytest.skip(str(error))
    return machine


def compiled(target, mesh=(1, 1, 1), **changes):
    """Returns a compiled step of a small model, and its figures."""
    machine = machine_of(target)
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    config = tiny(**SMALL | axes | changes)
    step = compile_step(config, absent_devices(machine))
    seq_len = config.data.seq_len
    return step, figures_of(step, config.train, seq_len, machine.chip.memory, machine.per_host)


def bytes_and_counts(figures, n_devices):
    """Returns (count, bytes) of the collectives between so many devices, by kind."""
    return {
        one.kind: (one.count, one.bytes) for one in figures.exchanges if one.devices == n_devices
    }


# -- one H100, whose program one worker compiles

of_gpt2 = pytest.mark.xdist_group("gpt2")


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2 124M, 64 sequences of 1,024 tokens, unrolled."""
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    changes = {f"model__{name}": n for name, n in sizes.items()} | {
        "model__vocab_multiple": 128,
        "model__unroll": True,
        "data__seq_len": 1024,
        "train__batch_size": 64,
    }
    step, figures = compiled("h100:1", **changes)
    return step, figures, parse(step.step.as_text())


@of_gpt2
def test_step_on_an_h100_moves_few_bytes(gpt2):
    """282 GB before the loss, GELU and LayerNorm were rewritten."""
    assert sum(gpt2[1].traffic.values()) <= 203e9


@of_gpt2
def test_peak_memory_is_the_one_measured_on_an_h100(gpt2):
    assert gpt2[1].peak == pytest.approx(38.3 * GIB, rel=0.01)
    assert gpt2[1].fits


@of_gpt2
def test_estimated_speed_is_near_the_one_measured_on_an_h100(gpt2):
    found = estimate(gpt2[1], CHIPS["h100"], 1, 10**9, 1.0)
    assert found.tokens_per_sec == pytest.approx(532_000, rel=0.05)


def instructions(program):
    """Yields all instructions that run, those inside of fusions included."""
    for computation, name, _ in program.walk():
        instruction = program.computations[computation][name]
        yield instruction
        if instruction.is_fusion:
            yield from program.inside(instruction)


@of_gpt2
def test_logits_are_stored_once_in_float32_and_not_scattered_into(gpt2):
    program, logits = gpt2[2], "[65536,50304]"
    names = ("get-tuple-element", "bitcast", "tuple", "parameter")
    stored = [
        program.computations[computation][name]
        for computation, name, _ in program.walk()
        if program.computations[computation][name].op not in names
    ]
    assert sum(f"f32{logits}" in one.type for one in stored) == 1
    assert sum(f"bf16{logits}" in one.type for one in stored) == 1
    scattered = [one.type for one in instructions(program) if one.op == "scatter"]
    assert scattered and not any(logits in type_ for type_ in scattered)


@of_gpt2
def test_fused_attention_runs_forward_and_backward_once_per_block(gpt2):
    calls = [one.attributes for one in instructions(gpt2[2]) if one.op == "custom-call"]
    count = lambda target: sum(f'custom_call_target="{target}"' in one for one in calls)
    assert count("__cudnn$fmhaSoftmax") == count("__cudnn$fmhaSoftmaxBackward") == 12


@of_gpt2
def test_every_array_of_the_state_is_donated(gpt2):
    step = gpt2[0]
    aliases = re.findall(r"may-alias|must-alias", step.step.as_text().splitlines()[0])
    assert len(aliases) == len(jax.tree.leaves(step.shapes))


# -- collectives


@pytest.mark.parametrize(("remat", "n_passes"), [("none", 1), ("elementwise", 2)])
def test_fsdp_on_h100s_moves_each_parameter_once_per_pass(remat, n_passes, capfd):
    """XLA combines the matrices of a block."""
    _, figures = compiled("h100:8", (1, 8, 1), model__remat=remat)
    found = bytes_and_counts(figures, 8)
    count, size = found.pop("all-gather")
    assert count <= 1 + LAYERS * n_passes
    assert size == 2 * MATRICES * n_passes + 4 * (WTE + WPE)
    assert found.pop("reduce-scatter") == (1 + LAYERS, 4 * (MATRICES + WTE + WPE))
    count, size = found.pop("all-reduce")  # vectors, the loss and the gradient's norm
    assert count <= 2 and size <= 60_000
    assert not found
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_tensor_parallel_weights_on_h100s_are_not_joined(capfd):
    _, figures = compiled("h100:8", (2, 2, 2))
    found = bytes_and_counts(figures, 2)
    # Tensor parallelism halves the matrices and the token embedding.
    assert found["all-gather"] == (1 + LAYERS, MATRICES + 4 * (WTE // 2 + WPE))
    assert found["reduce-scatter"] == (1 + LAYERS, 2 * MATRICES + 4 * (WTE // 2 + WPE))
    # Of activations in bfloat16, four per block; for the embedding, in float32; for the head.
    activations, gradients = 2 * 4 * SEQ * WIDTH, MATRICES + WTE + 2 * WPE
    count, size = found.pop("all-reduce")
    assert count <= 4 * LAYERS + 7
    assert size <= (4 * LAYERS + 3) * activations + gradients + 10_000
    assert found.keys() == {"all-gather", "reduce-scatter"}
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_fsdp_on_tpus_moves_each_parameter_once(capfd):
    """One matrix of each block is reduced as a whole instead: the attention's output."""
    _, figures = compiled("v5e:2x4", (1, 8, 1))
    # Its kernels compute nine products for two sequences on each device, in causal halves.
    assert figures.attention == "splash" and figures.traffic["attention"] > 0
    assert figures.attention_flops == LAYERS * 9 * 2 * SEQ**2 * WIDTH
    found = bytes_and_counts(figures, 8)
    assert found["all-gather"][1] == 2 * MATRICES + 4 * (WTE + WPE)
    whole = 4 * LAYERS * WIDTH**2
    assert found["reduce-scatter"][1] >= 4 * (MATRICES + WTE + WPE) - whole
    count, size = found.pop("all-reduce")
    assert count <= LAYERS + 2 and size <= whole + 60_000
    assert found.keys() == {"all-gather", "reduce-scatter"}
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_tensor_parallel_weights_on_tpus_are_not_joined(capfd):
    """XLA splits some sums of activations into a reduce-scatter and an all-gather."""
    _, figures = compiled("v5e:2x4", (2, 2, 2))
    found = bytes_and_counts(figures, 2)
    activations = 2 * 4 * SEQ * WIDTH
    weights = MATRICES + 4 * (WTE // 2 + WPE)
    assert weights <= found["all-gather"][1] <= weights + 8.5 * LAYERS * activations
    assert found["reduce-scatter"][1] == 2 * MATRICES + 4 * (WTE // 2 + WPE)
    assert found["all-reduce"][1] <= 10.6e6
    assert found["all-to-all"][1] <= 4 * LAYERS * activations
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("target", "kind"), [("v5e:2x4", "reduce-scatter"), ("v5e:4x4", "all-reduce")]
)
def test_libtpu_reduces_whole_arrays_over_16_chips(target, kind):
    """A minimal example; if it fails, `docs/guides/plan.md` can promise more."""
    machine = machine_of(target)
    mesh = jax.make_mesh((machine.n_devices,), ("all",), devices=absent_devices(machine))
    add = lambda x: lax.psum_scatter(2 * x, "all", scatter_dimension=0, tiled=True)
    everywhere, split = PartitionSpec(), PartitionSpec("all")
    step = jax.shard_map(add, mesh=mesh, in_specs=everywhere, out_specs=split, check_vma=False)
    x = jax.ShapeDtypeStruct((16_384, 128), jnp.float32, sharding=NamedSharding(mesh, everywhere))
    program = parse(jax.jit(step).lower(x).compile().as_text())
    assert {one.kind for one in find_collectives(program, machine.n_devices)} == {kind}


# -- the command


def test_peak_memory_on_a_tpu_is_the_recorded_one():
    _, figures = compiled("v5e:2x2", (1, 4, 1))
    assert figures.peak == pytest.approx(60_044_800, rel=0.05)
    assert figures.memory == int(15.75 * GIB)


def test_step_that_does_not_fit_on_a_tpu_is_said_to_need_more():
    machine = machine_of("v5e:2x2")
    config = to_dict(
        tiny(
            **SMALL
            | {"train__batch_size": 512, "model__n_positions": 2048, "data__seq_len": 2048}
            | {"model__dtype": "float32"}  # with all attention scores
        )
    )
    found = compile_elsewhere(machine, config, {"mesh.data": 4}, 300)
    assert isinstance(found, TooLarge) and found.needed > machine.chip.memory


def test_command_plans_for_two_hosts(tmp_path):
    machine_of("h100:2x4")
    sizes = {"n_layer": 2, "n_embd": 128, "n_head": 2, "dtype": "bfloat16", "unroll": False}
    flags = [f"--config.model.{name}={value}" for name, value in sizes.items()]
    flags += ["--config.mesh.fsdp=4", "--config.train.accumulation=1", "--json"]
    flags += ["--config.train.batch_size=8"]
    done = run(
        "-m", "gpt2_jax", "plan", "--config=quickstart", "--target=h100:2x4", *flags, tmp=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["figures"]
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and found["attention"] == "cudnn"
    between = {(one["kind"], one["between_hosts"]) for one in found["exchanges"]}
    assert ("all-reduce", True) in between and ("all-gather", False) in between
    assert ("all-gather", True) not in between

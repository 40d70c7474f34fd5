"""Plans for this machine's virtual devices, for shapes of absent ones, and wrong input."""

import json
import os
import select
import sys

import jax
import pytest

from gpt2_jax.config.convert import to_dict
from gpt2_jax.config.sections import MeshConfig, ModelConfig, TrainConfig
from gpt2_jax.errors import UserError
from gpt2_jax.nn.attention_kernels import fused_attention
from gpt2_jax.scale import compiler
from gpt2_jax.scale.chips import CHIPS
from gpt2_jax.scale.compiler import TooLarge, compile_elsewhere, needed_bytes
from gpt2_jax.scale.figures import figures_of
from gpt2_jax.scale.flops import executed_flops
from gpt2_jax.scale.meshes import choose_mesh, possible_meshes
from gpt2_jax.scale.plan import Planner
from gpt2_jax.scale.report import as_json, too_large_text
from gpt2_jax.scale.targets import Machine, absent_devices, parse_target, require_compiler
from gpt2_jax.train.compiled_step import compile_step
from tests.tools import one_line_error, run, start, tiny

LOCAL = parse_target("local")


def figures(mesh=(1, 1, 1), **changes):
    fields = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    config = tiny(model__unroll=False, **fields | changes)
    step = compile_step(config)
    return figures_of(step, config.train, config.data.seq_len, None), step


# -- figures of a compiled step


def test_executed_flops_are_those_of_the_matrix_products():
    """Two layers of width 16, 8 rows of 12 tokens, 16 logits; a product has two gradients."""
    n_tokens, d, t, v = 8 * 12, 16, 12, 16
    block = 2 * 12 * d * d + 4 * t * d  # four matrices; scores and their product with values
    flops = lambda forward_passes: n_tokens * (2 * block * (2 + forward_passes) + 3 * 2 * v * d)
    found, _ = figures(train__accumulation=2)
    assert found.product_flops == flops(1) and found.attention_flops == 0
    # The backward pass needs no result of the MLP's second matrix.
    repeated = flops(2) - 2 * n_tokens * 2 * 4 * d * d
    assert figures((2, 2, 2), model__remat="block")[0].product_flops == repeated / 8


def test_splash_attention_has_two_products_forward_and_seven_backward():
    """3 sequences, 2 heads of width 8; 100 positions are padded to 128."""
    loss = lambda qkv: fused_attention("splash", *qkv, 1.0).sum()
    traced = jax.make_jaxpr(jax.grad(loss))(jax.ShapeDtypeStruct((3, 3, 2, 100, 8), "bfloat16"))
    assert executed_flops(traced.jaxpr).attention == 9 * (2 * 3 * 2 * 128 * 128 * 8) // 2


@pytest.mark.parametrize(
    ("mesh", "optimizer"), [((1, 1, 1), "adamw"), ((1, 8, 1), "adamw"), ((2, 2, 2), "muon")]
)
def test_memory_of_the_state_is_that_of_its_arrays(mesh, optimizer):
    found, step = figures(mesh, optimizer__name=optimizer)
    state = step.init()
    held = lambda tree: sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(tree))
    assert found.parameters == held(state.params)
    assert found.optimizer == held(state.opt_state)
    assert found.peak > found.parameters + found.optimizer + found.gradients


def test_frozen_parameters_have_no_gradients():
    found, step = figures(optimizer__frozen=("wte",))
    assert found.parameters - found.gradients == 16 * 16 * 4  # padded vocabulary x width
    assert found.n_params == step.model_def.n_params()


def test_arrays_that_fsdp_gathers_and_reduces_have_the_sizes_of_the_parameters():
    """The matrices of two blocks, 12 D^2 each, and two embeddings, all float32."""
    found, _ = figures((1, 8, 1))
    by_kind = {one.kind: one for one in found.exchanges}
    matrices, embeddings = 2 * 12 * 16 * 16, (16 + 12) * 16
    # 8 devices do not divide the 12 positions, so they split the width instead.
    for kind in ("all-gather", "reduce-scatter"):
        assert by_kind[kind].bytes == 4 * (matrices + embeddings)
        assert by_kind[kind].devices == 8
    one, _ = figures()
    assert one.exchanges == []


# -- another process


def test_plan_of_this_machine_is_made_in_another_process():
    config = to_dict(tiny(mesh__data=2))
    planner = Planner(LOCAL, config, 1000, 0, None, 300)
    plan = planner.plan({"model.unroll": False})
    found = plan.figures
    assert (found.device_kind, found.mesh) == ("cpu", {"data": 2, "fsdp": 1, "tensor": 1})
    assert found.tokens_per_step == 96 and found.rows == 4
    assert found.memory is None or found.memory > 10**8
    assert plan.estimate is None  # the speed of this CPU is not known
    stored = json.loads(as_json(plan, {"model.remat": "block"}))
    assert stored["fits"] == found.fits and stored["changes"] == {"model.remat": "block"}
    assert stored["figures"]["mesh"]["data"] == 2
    assert json.loads(as_json(TooLarge(2**34, "no")))["fits"] is False


def test_command_prints_a_plan(tmp_path):
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8}
    changes = [f"--config.model.{name}={n}" for name, n in sizes.items()]
    words = ("-m", "gpt2_jax", "plan", "--config=quickstart", "--target=local", *changes)
    done = run(*words, "--config.mesh.data=2", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("mesh data=2 x fsdp=1 x tensor=1", "peak", "all-reduce", "fits", "executed"):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import time; time.sleep(60)", r"took longer than 1 s; raise --timeout"),
        ("import sys; print('F1126 fatal', file=sys.stderr); sys.exit(134)", r"134: F1126 fatal"),
        ('print(\'{"error": "model.n_head=3 is wrong"}\')', r"^model\.n_head=3 is wrong$"),
    ],
)
def test_compiler_that_hangs_or_crashes_is_one_line(monkeypatch, tmp_path, script, message):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec python3 -c \"$(cat <<'END'\n{script}\nEND\n)\"\n")
    program.chmod(0o755)
    monkeypatch.setattr(compiler.sys, "executable", str(program))
    with pytest.raises(UserError, match=message):
        compile_elsewhere(LOCAL, {}, {}, 1 if "sleep" in script else 60)


PARENT = """
import sys
from gpt2_jax.scale import compiler
from gpt2_jax.scale.targets import parse_target
compiler.sys.executable = sys.argv[1]
compiler.compile_elsewhere(parse_target("local"), {}, {}, 600)
"""


def test_compiler_ends_when_the_command_is_killed(tmp_path):
    """It waits for a request from a pipe that stays open, not from the command."""
    request, program = tmp_path / "request", tmp_path / "python"
    os.mkfifo(request)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" < {request}\n')
    program.chmod(0o755)
    parent = start("-c", PARENT, program, tmp=tmp_path)
    with parent, request.open("wb") as writing:  # the compiler has opened it too
        parent.kill()
        closed = select.poll()
        closed.register(writing, 0)
        assert closed.poll(60_000)


# -- targets and meshes


def test_targets_are_hosts_times_gpus_or_the_sides_of_a_slice():
    assert parse_target("h100:8") == Machine("h100:8", CHIPS["h100"], (1, 8))
    four = parse_target("h100:4x8")
    assert (four.n_devices, four.per_host) == (32, 8)
    slice_ = parse_target("v5p:2x2x4")
    assert (slice_.n_devices, slice_.per_host) == (16, None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a100:8", "'a100' is not one of h100, h200, b200, v5e, v5p, v6e, local"),
        ("h100", "needs a size"),
        ("h100:0", "needs a size"),
        ("v5e:4x", "needs a size"),
        ("h100:16", "one host of at most 8"),
        ("h100:2x2x2", "HOSTSxN"),
    ],
)
def test_impossible_target_is_refused(target, message):
    with pytest.raises(UserError, match=message):
        parse_target(target)


def test_missing_compiler_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for target, extra in (("v5e:4x4", "plan-tpu"), ("h100:8", "plan-gpu")):
        with pytest.raises(UserError, match=rf'pip install "gpt2_jax\[{extra}\]"'):
            require_compiler(parse_target(target))
    require_compiler(LOCAL)


def test_meshes_use_all_devices_and_divide_the_batch_and_the_heads():
    assert possible_meshes(4, 8, 6) == [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]
    assert possible_meshes(4, 2, 25) == []


def choose(memory=10**12, n_head=25, accumulation=1, **mesh):
    model, train = ModelConfig(n_head=n_head), TrainConfig(batch_size=16, accumulation=accumulation)
    return choose_mesh(model, train, MeshConfig(**mesh), 16, 10**11, memory)


def test_unset_mesh_is_the_one_that_training_would_use():
    assert choose() == (16, 1, 1)
    assert choose(memory=10**11) == (1, 16, 1)
    assert choose(fsdp=4) == (4, 4, 1)
    assert choose(accumulation=2) == (8, 1, 1)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"tensor": 4}, r"tensor=4 .* 25 heads allow data x fsdp x tensor = 16x1x1, 8x2x1, 4x4x1"),
        ({"data": 32}, "16 devices"),
        ({"fsdp": 3}, "16 sequences per micro-batch"),
        ({"data": 16, "accumulation": 2}, "allow no mesh that uses all devices"),
    ],
)
def test_mesh_that_cannot_work_is_refused_with_those_that_can(mesh, message):
    with pytest.raises(UserError, match=message):
        choose(**mesh)


def test_memory_that_a_compiler_asks_for_is_read_from_its_message():
    temporaries = (
        "the total memory required for HLO temporaries (43.13G) exceeds available (15.75G)"
    )
    assert needed_bytes(temporaries) == int(43.13 * 2**30)
    assert needed_bytes("Used 512.00M of 15.75G hbm. Exceeded") == 2**29
    assert needed_bytes("out of memory") is None
    text = too_large_text("v5e:4x4", TooLarge(2**34, ""), 2**33)
    assert "16.00 GiB" in text and "8.00 GiB are available" in text


def test_wrong_flags_are_one_line(tmp_path):
    words = ("-m", "gpt2_jax", "plan")
    for flags, message in (
        ((), "pass --config"),
        (("--config=gpt2:124m",), "pass --target"),
        (("--config=gpt2:124m", "--target=v5:8"), "is not one of"),
    ):
        assert message in one_line_error(run(*words, *flags, tmp=tmp_path))


def test_shape_that_a_compiler_does_not_know_is_refused(monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible\nby bounds")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    for target in ("v5e:3x5", "h100:8"):
        with pytest.raises(UserError, match=f"--target={target}: the compiler refuses this shape"):
            absent_devices(parse_target(target))

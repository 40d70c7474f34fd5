"""`track.profile`: its traces, its table, and what happens to a run that is stopped in between."""

import gzip
import json
import re
import signal
from types import SimpleNamespace

import pytest
from jax.profiler import ProfileData

from gpt2_jax.config import replace
from gpt2_jax.train import loop, run
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.profiling.op_kinds import Op, ProgramOps, program_ops
from gpt2_jax.train.profiling.profile import Profile
from gpt2_jax.train.profiling.step_times import render, step_events, step_times
from tests import tools
from tests.runs import config

TABLE = "time_per_step.txt"


@pytest.fixture(scope="module")
def profiled(text_file, tmp_path_factory):
    """A run of 20 steps, of which steps 9 to 12 are traced; there is an evaluation at 10."""
    workdir = tmp_path_factory.mktemp("profile") / "run"
    assert loop.train(config(text_file, track__profile="8:12"), str(workdir)) == 0
    return workdir


def test_trace_has_the_operations_of_the_traced_steps(profiled):
    (trace,) = (profiled / "profile").glob("8-12/plugins/profile/*/*.xplane.pb")
    planes = list(ProfileData.from_file(str(trace)).planes)
    events = list(step_events(planes, "jit_step"))
    assert {event.device for event in events} == {"0", "1"}
    sums = [event for event in events if event.op.startswith(("psum", "all-reduce"))]
    assert len(sums) == 4 * 2  # steps, devices
    names = [e.name for plane in planes for line in plane.lines for e in line.events]
    assert names.count("train") == 4  # a step in XProf
    assert not list(step_events(planes, "jit_other"))


def test_trace_opens_in_perfetto(profiled):
    (trace,) = (profiled / "profile").glob("8-12/plugins/profile/*/*.trace.json.gz")
    with gzip.open(trace) as file:
        assert len(json.load(file)["traceEvents"]) > 100


def test_table_divides_the_time_of_a_step(profiled):
    lines = (profiled / "profile" / "8-12" / TABLE).read_text().splitlines()
    assert lines[0] == "time per step, steps 9 to 12, mean of 2 devices"
    until = lines.index("", 2)
    rows = dict(re.fullmatch(r"(\w+) +([\d.]+) ms .*", line).groups() for line in lines[2:until])
    step = float(rows.pop("step"))
    assert {"matmuls", "attention", "norms", "loss", "optimizer", "collectives"} < rows.keys()
    assert sum(map(float, rows.values())) >= 0.98 * step > 0


def test_profile_changes_no_loss(profiled, text_file, tmp_path):
    plain = tmp_path / "run"
    assert loop.train(config(text_file), str(plain)) == 0
    losses = lambda workdir: [
        json.loads(line).get("train/loss")
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses(plain) == losses(profiled) and not (plain / "profile").exists()


def test_stopped_run_traces_the_rest_when_it_is_resumed(text_file, tmp_path, monkeypatch):
    """Stopped after step 5 of 2:9: the traces are 2-5 and 5-9. A third start traces nothing."""
    made = config(text_file, track__profile="2:9", train__log_every=1)
    shown = run.RunLogger.write

    def write(self, row):
        if row["step"] == 4:
            signal.raise_signal(signal.SIGTERM)
        shown(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(run.RunLogger, "write", write)
        assert loop.train(made, str(tmp_path / "run")) == 75
    folder = tmp_path / "run" / "profile"
    assert [path.name for path in folder.iterdir()] == ["2-5"]
    assert "steps 3 to 5" in (folder / "2-5" / TABLE).read_text()
    assert loop.train(made, str(tmp_path / "run")) == 0
    assert {path.name for path in folder.iterdir()} == {"2-5", "5-9"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert loop.train(replace(made, {"train.steps": 22}), str(tmp_path / "run")) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_window_that_is_over_is_reported(tmp_path):
    said = []
    profile = Profile((2, 5), 7, tmp_path / "profile", lambda: "", said.append)
    assert said == ["track.profile=2:5: the run continues after step 7"]
    assert not any(profile.is_due(step) for step in range(10))


def test_existing_trace_is_not_repeated(tmp_path):
    (tmp_path / "2-5").mkdir()
    again = Profile((2, 5), 0, tmp_path, lambda: "", print)
    assert not any(again.is_due(step) for step in range(10))
    other = Profile((2, 6), 0, tmp_path, lambda: "", print)
    assert [step for step in range(10) if other.is_due(step)] == [2]


def test_fault_of_the_profiler_does_not_end_the_run(tmp_path, monkeypatch):
    def busy(*args, **options):
        raise RuntimeError("Only one profile may be run\nat a time.")

    monkeypatch.setattr("jax.profiler.start_trace", busy)
    said = []
    profile = Profile((2, 5), 0, tmp_path / "profile", lambda: "", said.append)
    profile.begin()
    assert said == ["track.profile: tracing cannot start: Only one profile may be run at a time."]
    assert not profile.is_active and not profile.is_due(2) and not profile.is_due(5)


def test_operations_of_a_compiled_step_have_their_categories():
    found = program_ops(compile_step(tools.tiny(mesh__data=2, optimizer__name="muon")).hlo())
    assert found.module == "jit_step"
    of = lambda text: {op.category for op in found.ops.values() if re.search(text, op.source)}
    assert of(r"attention/.*dot_general$") == {"attention"}
    assert "matmuls" in of(r"jvp\(loss\)/NV,VD->ND/dot_general|jvp\(loss\)/ND,VD->NV/dot_general")
    assert of(r"shard_map/jvp\(\)/\w+/dot_general$") == {"matmuls"}
    assert "norms" in of(r"norm/rsqrt$")
    assert of(r"optimizer/.*dot_general$") <= {"optimizer", None}
    assert "collectives" in of(r"psum$")


GPU_HLO = """HloModule jit_step, is_scheduled=true

%fused_add (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p.1, %p.1)
}

%gemm_computation (p.2: bf16[8,8]) -> bf16[8,8] {
  %p.2 = bf16[8,8]{1,0} parameter(0)
  ROOT %dot.1 = bf16[8,8]{1,0} dot(%p.2, %p.2), lhs_contracting_dims={1}
}

%command_buffer (p.3: f32[8]) -> (f32[8], bf16[8,8]) {
  %loop_add_fusion.7 = f32[8]{0} fusion(%p.3), kind=kLoop, calls=%fused_add
  %loop_add_fusion.8 = f32[8]{0} fusion(%p.3), calls=%fused_add, metadata={\
op_name="jit(step)/optimizer/add" deduplicated_name="loop_add_fusion.9"}
  %gemm_fusion_dot.3 = bf16[8,8]{1,0} fusion(%p.4), kind=kCustom, calls=%gemm_computation
  %pallas_call.2 = (bf16[8,8]{1,0}, f32[8]{0}) custom-call(%p.4), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/jvp()/norm/pallas_call"}
  %fmha.1 = (f32[8]{0}, u8[0]{0}) custom-call(%p.4), custom_call_target="__cudnn$fmhaSoftmax"
  %cublas.1 = bf16[8]{0} custom-call(%p.4), custom_call_target="__cublas$gemm"
}

ENTRY %main (p.5: f32[8]) -> f32[8] {
  %command_buffer_1 = (f32[8]{0}, bf16[8,8]{1,0}) call(%p.5), to_apply=%command_buffer
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%p.5), to_apply=%fused_add
  %copy.1 = f32[8]{0} copy(%p.5)
  ROOT %while.1 = f32[8]{0} while(%p.5), condition=%c, body=%b
}
"""


def gpu_plane(name, *events):
    """A device's plane; events are (stream, name, hlo_op, start and duration in microseconds)."""
    names = sorted({event[1] for event in events})
    lines = "".join(
        f'lines {{ id: {stream} name: "Stream #{stream}(Compute)" events {{ '
        f"metadata_id: {names.index(kernel)} offset_ps: {start}000000 duration_ps: {us}000000 "
        f'stats {{ metadata_id: 1 str_value: "{op}" }} '
        'stats { metadata_id: 2 str_value: "jit_step" } } }\n'
        for stream, kernel, op, start, us in events
    )
    metadata = "".join(
        f'event_metadata {{ key: {i} value {{ id: {i} name: "{text}" }} }}\n'
        for i, text in enumerate(names)
    )
    stats = "".join(
        f'stat_metadata {{ key: {i} value {{ id: {i} name: "{text}" }} }}\n'
        for i, text in ((1, "hlo_op"), (2, "hlo_module"))
    )
    return f'planes {{ name: "{name}" {lines}{metadata}{stats} }}\n'


def test_kernels_of_a_gpu_are_assigned_also_inside_cuda_graphs():
    """In a CUDA graph, which is one operation, only the names of kernels tell them apart."""
    graph = "command_buffer_1"
    plane = gpu_plane(
        "/device:GPU:0",
        (1, "nvjet_sm90_tst_128x160_64x5_2x1_v_bz_TNT", graph, 0, 100),
        (1, "cudnn_generated_fort_native_sdpa_sm90_flash_bprop", graph, 100, 40),
        (1, "loop_add_fusion_7", graph, 140, 8),
        (1, "loop_add_fusion_9", graph, 148, 6),
        (1, "pallas_call_2", graph, 154, 5),
        (1, "layer_norm_forward", graph, 159, 4),
        (1, "cross_entropy", graph, 163, 3),
        (1, "gemm_fusion_dot_3", "gemm_fusion_dot.3", 166, 20),
        (2, "ncclDevKernel_AllReduce", "all-reduce-start.1", 150, 50),
        (1, "copy_1", "copy.1", 186, 2),
    )
    events = step_events(ProfileData.from_text_proto(plane).planes, "jit_step")
    times = step_times(events, program_ops(GPU_HLO), n_steps=2, seconds=500e-6)
    halves = {name: round(2e3 * ms) for name, ms in times.categories.items()}
    assert halves == {
        "matmuls": 120, "attention": 40, "elementwise": 8, "optimizer": 6, "norms": 9, "loss": 3,
        "copies": 2, "collectives": 50,
    }  # fmt: skip
    assert times.wall == pytest.approx(0.25)
    assert times.idle == pytest.approx(0.25 - 0.2 / 2)  # busy from 0 to 200 us
    assert times.ops[0][:2] == ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_TNT", "matmuls")
    assert "steps 3 to 4, 1 device" in render(times, 3, 4)


def test_overlapping_operations_are_mentioned():
    plane = gpu_plane("/device:GPU:0", (1, "a", "x", 0, 100), (2, "nccl", "y", 0, 100))
    events = step_events(ProfileData.from_text_proto(plane).planes, "jit_step")
    times = step_times(events, ProgramOps("jit_step", {}), n_steps=1, seconds=110e-6)
    assert "operations overlap" in render(times, 1, 1)


def test_operations_of_a_tpu_are_those_of_one_line():
    """Other lines repeat them as modules and steps. Names are instructions."""
    event = lambda name, start: SimpleNamespace(name=name, stats=[], start_ns=start, duration_ns=10)
    ops = SimpleNamespace(name="XLA Ops", events=[event("%fusion.1 = f32[8] fusion(...)", 0)])
    modules = SimpleNamespace(name="XLA Modules", events=[event("jit_step(1)", 0)])
    plane = SimpleNamespace(name="/device:TPU:0", lines=[modules, ops])
    (found,) = step_events([plane], "jit_step")
    assert (found.op, found.device, found.stop) == ("fusion.1", "/device:TPU:0", 10)


def test_trace_without_operations_has_no_times():
    assert step_times([], ProgramOps("jit_step", {"a": Op("matmuls")}), 1, 1.0) is None

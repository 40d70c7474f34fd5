"""Configs: every shipped file loads, every error is one line that names the field."""

import dataclasses
import importlib.util
import inspect
from pathlib import Path

import pytest

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.design import Study
from gpt2_jax.config import capacity
from gpt2_jax.config.check import check, check_stored, check_values
from gpt2_jax.config.renamed import RENAMED
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.placements import AXES
from gpt2_jax.train.optim.schedule import warmup_steps
from tests.tools import ROOT, tiny

TASKS = ("classify", "ner", "answer")  # with a start as argument
SHIPPED = [
    ("configs/quickstart.py", None),
    ("configs/shakespeare.py", None),
    ("configs/ablations/placement.py", None),
    ("configs/ablations/qk_norm.py", None),
    ("configs/ablations/residual_scale_depth.py", None),
    ("configs/ablations/translation.py", None),
    ("configs/finetune.py", None),
    ("configs/bert.py", None),
    ("configs/translate.py", None),
    ("configs/summarize.py", None),
    ("configs/sft.py", None),
    *((f"configs/{name}.py", start) for name in TASKS for start in ("scratch", "finetune")),
    ("configs/gpt2.py", "124m"),
    ("configs/gpt2.py", "350m"),
    ("configs/gpt2.py", "774m"),
    ("configs/gpt2.py", "1558m"),
]
GPT2_SIZES = {
    "124m": 124_439_808,
    "350m": 354_823_168,
    "774m": 774_030_080,
    "1558m": 1_557_611_200,
}


def load(file, arg):
    spec = importlib.util.spec_from_file_location("shipped", ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (
        module.get_config(arg)
        if inspect.signature(module.get_config).parameters
        else (module.get_config())
    )


def test_every_shipped_config_is_tested():
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py")}
    assert files == {file for file, _ in SHIPPED}


@pytest.mark.parametrize(("file", "arg"), SHIPPED)
def test_every_shipped_config_is_valid_and_locked(file, arg):
    given = load(file, arg)
    with pytest.raises(AttributeError):
        given.model.n_layers = 3
    config = configs.freeze(given)
    check_values(config)
    config = configs.resolve(config, 50257 if config.data.tokenizer == "gpt2" else 257)
    if arg in GPT2_SIZES:
        assert define_model(config.model, config.placement).n_params() == GPT2_SIZES[arg]


@pytest.mark.parametrize(("file", "arg"), SHIPPED)
def test_short_run_of_a_shipped_config_needs_one_override(file, arg):
    config = configs.freeze(load(file, arg))
    share = warmup_steps(config.optimizer, config.train.steps) / config.train.steps
    check_values(configs.replace(config, {"train.steps": 40}))
    assert warmup_steps(config.optimizer, 40) == round(40 * share) > 0


def test_warm_up_of_the_committed_studies_is_unchanged():
    given = [load(f"configs/{name}.py", arg) for name, arg in [
        ("quickstart", None), ("shakespeare", None), ("finetune", None), ("gpt2", "124m"),
        ("ablations/placement", None), ("ablations/qk_norm", None),
        ("ablations/residual_scale_depth", None),
    ]]  # fmt: skip
    lengths = [warmup_steps(config.optimizer, config.train.steps) for config in given]
    assert lengths == [100, 100, 50, 700, 100, 100, 50]


def test_model_too_large_for_memory_is_refused_before_it_is_built(monkeypatch):
    large = tiny(**{"model.n_embd": 64, "model.n_layer": 8})  # 8 * 12 * 64**2 parameters
    monkeypatch.setattr(capacity, "machine_bytes", lambda: 1_000_000)
    check(tiny())
    with pytest.raises(UserError, match=r"model\.n_layer=8, model\.n_embd=64 .* 4\.7 MB"):
        check(large)
    check_stored(large, "config.json")  # a third of the memory, without moments
    with pytest.raises(UserError, match=r"train\.batch_size=8000 .* data\.seq_len=12"):
        tiny(**{"train.batch_size": 8000})
    tiny(**{"train.batch_size": 8000, "train.accumulation": 1000})


@pytest.mark.parametrize(
    "placement", ["pre_ln", "albert", "svformer", "simplified_skipless", "laurel_lr", "ngpt"]
)
def test_parameter_estimate_is_a_lower_bound(placement):
    config = tiny(**{"placement.preset": placement, "model.n_embd": 64, "model.vocab_multiple": 1})
    n_params = define_model(config.model, config.placement).n_params()
    assert 0.7 <= capacity.least_parameters(config) / n_params <= 1


def test_host_memory_is_limited_by_machine_and_container(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(capacity, "CGROUP_LIMIT", tmp_path / "memory.max")
    whole = capacity.machine_bytes()
    assert 2**28 < whole < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    assert capacity.machine_bytes() == whole
    (tmp_path / "memory.max").write_text("1048576\n")
    assert capacity.machine_bytes() == 1048576


@pytest.mark.parametrize("name", TASKS)
def test_unknown_start_is_named(name):
    with pytest.raises(UserError, match=rf"{name}\.py: 'finetuned' .*finetune"):
        load(f"configs/{name}.py", "finetuned")


def test_unknown_size_is_named():
    with pytest.raises(
        UserError, match="'small' is not a size; choose one of 124m, 1558m, 350m, 774m"
    ):
        load("configs/gpt2.py", "small")


def test_default_model_is_gpt2():
    """The published architecture, in full."""
    config = configs.freeze(load("configs/gpt2.py", "124m"))
    assert dataclasses.asdict(config.model) == {
        "architecture": "decoder",
        "position_offset": 0,
        "logits_bias": False,
        "n_layer": 12,
        "n_encoder_layer": None,
        "n_head": 12,
        "n_embd": 768,
        "n_positions": 1024,
        "n_inner": None,
        "vocab_size": None,
        "vocab_multiple": 128,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "document_mask": False,
        "end_of_text": None,
        "tie_head": True,
        "share_embeddings": True,
        "token_types": 0,
        "dropout": 0.0,
        "init_std": 0.02,
        "attention": "auto",
        "fused_kernels": True,
        "dtype": "bfloat16",
        "matmul_dtype": None,
        "unroll": True,
        "remat": "none",
    }
    assert config.placement.preset == "pre_ln"
    placement = dataclasses.asdict(config.placement.resolve())
    assert {name: placement[name] for name in AXES} == {
        "connection": "plain",
        "norm_sites": "pre",
        "norm_type": "layernorm",
        "norm_eps": 1e-5,
        "norm_bias": True,
        "norm_gain": "1",
        "norm_alpha": "0.5",
        "embedding_norm": False,
        "final_norm": "auto",
        "skip_scale": "1",
        "data_dependent_init": False,
        "branch_scale": "1",
        "input_scale": "1",
        "drop_path": "0",
        "gate_bias": 2.0,
        "layer_overrides": "",
        "init": "normal",
        "residual_init": "S**-0.5",
        "value_init": "1",
        "query_init": "1",
        "key_init": "1",
        "embedding_std": "std",
        "embedding_multiplier": "1",
        "multiplier_target": "tokens",
        "fixnorm": False,
        "positions": "learned",
        "positions_at": "embedding",
        "activation": "gelu_new",
        "scalar_bias": False,
        "shaped_attention": False,
        "identity_values": False,
        "head_scale": False,
        "unit_weights": False,
        "hidden_scale": False,
        "logit_scale": False,
        "value_residual": "none",
        "cross_layer": "none",
        "x0_scales": "1 | 0",
        "share_blocks": 0,
        "parametrization": "standard",
        "depth_groups": 0,
        "n_streams": 4,
        "rank": 32,
        "base_n_layer": 2,
        "base_n_embd": 256,
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model.n_head": 3},
            "model.n_head=3 does not divide model.n_embd=16; choose one of 1, 2, 4, 8, 16",
        ),
        (
            {"data.seq_len": 13},
            "data.seq_len=13 is longer than model.n_positions=12; shorten it, or raise "
            "model.n_positions",
        ),
        (
            {"train.accumulation": 3},
            "train.accumulation=3 does not divide train.batch_size=8",
        ),
        (
            {"mesh.data": 3},
            "mesh.data=3 does not divide the 8 sequences of a micro-batch (train.batch_size / "
            "train.accumulation); choose one of 1, 2, 4, 8",
        ),
        (
            {"mesh.data": 2, "mesh.fsdp": 8},
            "mesh.data=2 x mesh.fsdp=8 does not divide the 8 sequences of a micro-batch "
            "(train.batch_size / train.accumulation); choose factors whose product is one of "
            "1, 2, 4, 8",
        ),
        (
            {"mesh.tensor": 4},
            "mesh.tensor=4 does not divide model.n_head=2; choose one of 1, 2",
        ),
        (
            {"placement.preset": "pre_nl"},
            "placement.preset='pre_nl' is unknown; did you mean 'pre_ln'?",
        ),
        (
            {"optimizer.schedule": "step"},
            "optimizer.schedule='step' is unknown; choose one of constant, cosine, inverse_sqrt, "
            "linear, wsd",
        ),
        ({"model.dropout": 1.0}, "model.dropout=1.0 must be at least 0 and below 1"),
        ({"optimizer.peak_lr": float("nan")}, "optimizer.peak_lr=nan is not a finite number"),
        ({"train.steps": 0}, "train.steps=0 must be between 1 and 2147483647"),
        (
            {"optimizer.warmup_steps": 20},
            "optimizer.warmup_steps=20 must be below train.steps=20; shorten the warm-up, or "
            "leave it unset and set optimizer.warmup_fraction",
        ),
        (
            {"model.n_embd": 2**20 - 3, "model.n_head": 2},
            "model.n_head=2 does not divide model.n_embd=1048573; choose one of 1, 1048573",
        ),
        (
            {"mesh.data": 4096, "train.batch_size": 4096},
            "mesh.data=4096 is more than the 256 devices that a CPU can simulate",
        ),
        (
            {"model.matmul_dtype": "float32", "model.dtype": "bfloat16"},
            "model.matmul_dtype=float32 needs model.dtype=float32: with model.dtype=bfloat16, "
            "inputs of matrix products are already rounded",
        ),
        (
            {"model.attention": "cudnn"},
            "model.attention=cudnn needs model.dtype=bfloat16",
        ),
        (
            {"model.attention": "cudnn", "model.dtype": "bfloat16", "model.dropout": 0.1},
            "model.attention=cudnn does not support dropout on attention weights; "
            "set model.dropout=0 or model.attention=xla",
        ),
        (
            {"model.attention": "cudnn", "model.dtype": "bfloat16", "model.n_embd": 12},
            "model.attention=cudnn needs model.n_embd / model.n_head to be a multiple of 8 and at "
            "most 256, not 6; set model.attention=xla",
        ),
        (
            {"track.wandb.mode": "onlin"},
            "track.wandb.mode='onlin' is unknown; did you mean 'online'?",
        ),
        (
            {"track.profile": "10-15"},
            "track.profile='10-15' must be start:stop, such as 20:25",
        ),
        (
            {"track.profile": "15:15"},
            "track.profile=15:15: start must be below stop, and stop at most train.steps=20",
        ),
        (
            {"track.profile": "15:21"},
            "track.profile=15:21: start must be below stop, and stop at most train.steps=20",
        ),
        (
            {"track.profile": "0:101", "train.steps": 200},
            "track.profile=0:101 traces 101 steps; choose at most 100",
        ),
    ],
)
def test_error_is_one_line_that_names_the_field_and_the_fix(changes, line):
    with pytest.raises(UserError) as caught:
        tiny(**changes)
    assert str(caught.value) == line


def test_replace_changes_only_the_given_fields():
    traced = object()
    made = configs.replace(tiny(), {"optimizer.peak_lr": traced, "track.wandb.name": "a"})
    assert made.optimizer.peak_lr is traced and made.track.wandb.name == "a"
    assert configs.difference(made, tiny()).keys() == {"optimizer.peak_lr", "track.wandb.name"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 3


def test_every_field_is_declared_with_its_type():
    for name, field in configs.FIELDS.items():
        assert field.kind in (int, float, bool, str, tuple), name
        assert field.optional or type(field.default) is field.kind, name


def test_every_axis_is_a_field_that_is_unset_by_default():
    for axis in AXES:
        assert configs.FIELDS[f"placement.{axis}"].optional
    assert configs.Config().placement.overrides == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.placement", "placement.preset"),
        ("model.norms", "placement.norm_sites"),
        ("model.activation", "placement.activation"),
    ],
)
def test_old_field_name_is_answered_with_the_new_one(old, new, tmp_path):
    with pytest.raises(UserError, match=f"{old}.*{new}"):
        configs.validated(old, "x")
    section, _, leaf = old.partition(".")
    with pytest.raises(UserError, match=f"config.json.*{old}.*{new}"):
        configs.from_dict({section: {leaf: "x"}}, tmp_path / "config.json")
    with pytest.raises(UserError, match=f"{old}.*{new}"):
        Study([{old: "x"}], {}).check()


def test_renamed_fields_map_old_names_to_existing_fields():
    assert not {*RENAMED} & {*configs.FIELDS} and {*RENAMED.values()} <= {*configs.FIELDS}


def test_vocabulary_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(UserError) as caught:
        configs.resolve(tiny(), 257)
    assert str(caught.value) == (
        "model.vocab_size=11 is smaller than the 257 tokens of data.tokenizer=bytes; "
        "leave it unset or raise it"
    )


def test_config_json_round_trip(tmp_path):
    config = tiny(**{"track.wandb.tags": ("a", "b"), "optimizer.skip_outliers": 5.0})
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(config))
    again = configs.from_json(path)
    assert again == config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "nested too deeply"),
        (
            '{"model": {"n_layers": 3}}',
            "'model.n_layers' is not a config field; did you mean 'model.n_layer'",
        ),
        ('{"train": {"steps": "many"}}', "train.steps='many'"),
        ('{"train": {"steps": true}}', "train.steps=True"),
        ('{"train": 3}', "train=3"),
        ('{"placement": {"norm_eps": 1%s}}' % ("0" * 400), "placement.norm_eps"),
    ],
)
def test_damaged_config_json_is_a_one_line_error(tmp_path, text, line):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=line):
        configs.from_json(path)


def test_unreadable_config_json_is_a_one_line_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(UserError, match=r"config\.json cannot be read: Permission denied"):
        configs.from_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"track.wandb.group": "g"},
        {"train.log_every": 3},
        {"train.eval_every": 3},
        {"train.checkpoint_every": 3},
        {"mesh.data": 2},
        {"train.steps": 21},
    ],
)
def test_fields_that_may_change_on_resume(tmp_path, changes):
    configs.check_resumable(tiny(), tiny(**changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer.peak_lr": 0.5}, "optimizer.peak_lr (was 0.01, now 0.5)"),
        ({"seed": 1}, "seed (was 0, now 1)"),
        (
            {"optimizer.moments_dtype": "int8"},
            "optimizer.moments_dtype (was 'float32', now 'int8')",
        ),
        ({"train.steps": 19}, "train.steps (was 20, now 19)"),
        ({"train.batch_size": 16}, "train.batch_size (was 8, now 16)"),
        ({"model.n_layer": 3, "seed": 2}, "seed (was 0, now 2), model.n_layer (was 2, now 3)"),
    ],
)
def test_other_differences_on_resume_are_refused_by_name(tmp_path, changes, named):
    with pytest.raises(UserError) as caught:
        configs.check_resumable(tiny(), tiny(**changes), tmp_path)
    assert named in str(caught.value)


def test_depth_of_both_towers_encoder_first():
    fields = {"model.architecture": "encoder_decoder", "model.n_layer": 3}
    assert configs.replace(configs.Config(), fields).model.depth == "3 + 3"
    fields["model.n_encoder_layer"] = 12
    assert configs.replace(configs.Config(), fields).model.depth == "12 + 3"
    assert configs.replace(configs.Config(), {"model.n_layer": 12}).model.depth == "12"

"""Placements in a module outside the package, which is only imported on request."""

import json

import pytest

from gpt2_jax import config as configs
from gpt2_jax.config.check import check
from gpt2_jax.config.table import validated
from gpt2_jax.errors import UserError
from gpt2_jax.model import residual
from gpt2_jax.model.definition import define_model
from gpt2_jax.nn.norms import NormType, RMSNorm, register_norm
from gpt2_jax.placements import PRESETS, Placement, modules
from gpt2_jax.placements.axes import SCALES
from gpt2_jax.placements.registry import SUPPORTS, Supports, declare, register_preset
from tests.ablation.study.small import BASE
from tests.tools import ROOT, one_line_error, run, tiny

GATED = '''
"""x' = x + tanh(g) N(F(N(x))), one g per sublayer, initially 0.5; N without a gain."""

import jax.numpy as jnp

from gpt2_jax.model.residual import Combine, register
from gpt2_jax.nn.norms import FixedRMSNorm, NormType, register_norm
from gpt2_jax.nn.param import Role, param
from gpt2_jax.placements import Placement
from gpt2_jax.placements.registry import Supports, register_preset


@register("tanh_gated", Supports(sites=("pre", "out"), scales=()))
class TanhGated(Combine):
    def __init__(self, build, spec):
        self.gate = param(jnp.float32(0.5), Role.SCALAR)

    def __call__(self, x, u, y, context):
        return x + (jnp.tanh(self.gate[...]) * y).astype(x.dtype)


@register_norm("half_rms", NormType(gain=False))
class HalfRMS(FixedRMSNorm):
    def normalize(self, x):
        return 0.5 * super().normalize(x)


register_preset(
    "gated",
    Placement(
        equation="x' = x + tanh(g) N(F(N(x)))",
        citation="this test",
        connection="tanh_gated",
        norm_sites="pre+out",
        norm_type="half_rms",
    ),
)
'''
MODULE = "my_pkg.my_placements"
PRESET = [f"--config.placement.module={MODULE}", "--config.placement.preset=gated"]
SIZES = [
    "--config.train.steps=2", "--config.train.sample_tokens=0", "--config.train.eval_tokens=128",
    "--config.model.n_layer=1", "--config.model.n_embd=16", "--config.data.seq_len=16",
]  # fmt: skip


def define(**changes):
    config = tiny(**changes)
    return define_model(config.model, config.placement)


def package(folder, text=GATED):
    (folder / "my_pkg").mkdir(parents=True)
    (folder / "my_pkg" / "__init__.py").write_text("")
    (folder / "my_pkg" / "my_placements.py").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return package(tmp_path_factory.mktemp("mine"))


def gpt2_jax(*args, tmp, path):
    return run("-m", "gpt2_jax", *args, tmp=tmp, PYTHONPATH=f"{ROOT}:{path}")


@pytest.fixture(scope="module")
def trained(path, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("trained")
    workdir = f"--workdir={tmp}/run"
    args = ("train", "--config=quickstart", workdir, *PRESET, *SIZES)
    done = gpt2_jax(*args, tmp=tmp, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gated" in done.stdout
    return tmp, workdir


def test_module_name_is_recorded(trained):
    stored = json.loads((trained[0] / "run" / "config.json").read_text())
    assert stored["placement"]["module"] == MODULE and stored["placement"]["preset"] == "gated"


def test_run_is_reopened_only_with_its_module(trained, path):
    tmp, workdir = trained
    sample = ("sample", workdir, "--max_new_tokens=1")
    assert MODULE in one_line_error(gpt2_jax(*sample, tmp=tmp, path=path))
    done = gpt2_jax(*sample, f"--module={MODULE}", tmp=tmp, path=path)
    assert done.returncode == 0, done.stderr


def test_run_is_reopened_with_an_installed_entry_point(trained, path, tmp_path):
    info = tmp_path / "my_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpt2_jax.placements]\nmine = {MODULE}\n")
    tmp, workdir = trained
    done = gpt2_jax("sample", workdir, "--max_new_tokens=1", tmp=tmp, path=f"{path}:{tmp_path}")
    assert done.returncode == 0, done.stderr


def test_module_presets_are_listed(path, tmp_path):
    done = gpt2_jax("placements", f"--module={MODULE}", tmp=tmp_path, path=path)
    assert "gated " in done.stdout and "x' = x + tanh(g) N(F(N(x)))" in done.stdout
    shown = gpt2_jax("placements", f"--module={MODULE}", "--show=gated", tmp=tmp_path, path=path)
    assert "norm_type=half_rms" in shown.stdout and "parameters" in shown.stdout


def test_run_with_a_module_can_be_planned(path, tmp_path):
    args = ("plan", "--config=quickstart", "--target=local", *PRESET, *SIZES, "--json")
    done = gpt2_jax(*args, "--config.mesh.data=1", tmp=tmp_path, path=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["mesh"]["data"] == 1


STUDY = """
from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Study, grid

def get_config():
    config = configs.default()
    for section, fields in {base!r}.items():
        config[section].update(fields)
    config.placement.module = {module!r}
    return config

def get_study():
    return Study(
        grid({{"placement.preset": ("pre_ln", "gated")}}), {{"placement.preset": "pre_ln"}},
        seeds=range(1, 7),
    )
"""


@pytest.mark.slow
def test_study_compares_module_presets(path, tmp_path, text_file):
    file = tmp_path / "study.py"
    file.write_text(STUDY.format(base=BASE, module=MODULE))
    workdir = f"--workdir={tmp_path}/w"
    args = ("ablate", f"--config={file}", f"--config.data.source={text_file}", workdir)
    done = gpt2_jax(*args, tmp=tmp_path, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert MODULE in one_line_error(gpt2_jax("report", workdir, tmp=tmp_path, path=path))
    again = gpt2_jax("report", workdir, f"--module={MODULE}", tmp=tmp_path, path=path)
    assert again.returncode == 0, again.stderr
    assert "tanh(g)" in (tmp_path / "w" / "report.md").read_text()


def test_stored_module_name_is_not_imported(tmp_path, monkeypatch):
    package(tmp_path, f"open({str(tmp_path / 'was_run')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = {"placement": {"module": MODULE}}
    with pytest.raises(UserError, match=MODULE):
        configs.from_dict(stored, tmp_path / "config.json")
    with pytest.raises(UserError, match=MODULE):
        check(tiny(placement__module=MODULE))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_package.mine", "module no_such_package was"),
        ("my_pkg.no_such_module", r"module my_pkg\.no_such_module"),
        ("my_pkg.my_placements", "boom"),
        ("my_pkg.absent", "'absent_dependency'"),
        ("../evil", "not a module name"),
        (".", "not a module name"),
    ],
)
def test_import_error_of_a_module_is_one_line(name, says, tmp_path, monkeypatch):
    package(tmp_path, "raise RuntimeError('boom')")
    (tmp_path / "my_pkg" / "absent.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = configs.default()
    given.placement.module = name
    with pytest.raises(UserError, match=rf"^placement\.module.*{says}") as error:
        configs.freeze(given)
    assert "\n" not in str(error.value)
    assert name not in modules.LOADED


@pytest.mark.parametrize("field", ["placement.preset", "placement.norm_type"])
def test_unknown_preset_or_norm_suggests_naming_its_module(field):
    with pytest.raises(UserError, match=r"placement\.module"):
        validated(field, "tanh_gate")


def test_a_connection_supports_by_default_what_the_sublayer_implements():
    assert Supports().sites == ("pre", "out")
    assert Supports().scales == ("branch_scale", "input_scale")


@pytest.fixture
def ignoring():
    """A registered connection that declares a norm and a scale, and uses neither."""

    class Ignoring(residual.Combine):
        def __call__(self, x, u, y, context):
            return x + y

    supports = Supports(sites=("pre", "out", "post"), scales=SCALES)
    residual.register("ignoring", supports)(Ignoring)
    yield
    del residual.CONNECTIONS["ignoring"], SUPPORTS["ignoring"]


@pytest.mark.parametrize(
    ("axis", "value", "ignored"),
    [("norm_sites", "pre | pre+post", "post"), ("skip_scale", "learned_scalar(1)", "skip_scale")],
)
def test_connection_that_ignores_what_it_declares_is_refused(ignoring, axis, value, ignored):
    fields = {"placement.connection": "ignoring"}
    define(**fields)
    with pytest.raises(UserError, match=f"'ignoring' .* supports '{ignored}' but never") as error:
        define(**fields, **{f"placement.{axis}": value})
    assert "\n" not in str(error.value)


def test_registering_a_name_twice_is_an_error():
    with pytest.raises(ValueError, match="'pre_ln' is registered twice"):
        register_preset("pre_ln", PRESETS["pre_ln"])
    with pytest.raises(ValueError, match="'plain' is registered twice"):
        declare("plain", Supports())
    with pytest.raises(ValueError, match="'rmsnorm' is registered twice"):
        register_norm("rmsnorm", NormType())(RMSNorm)


def test_preset_with_an_invalid_axis_value_is_refused():
    with pytest.raises(UserError, match="'mine': norm_type='batchnorm'"):
        register_preset("mine", Placement(equation="", citation="", norm_type="batchnorm"))
    assert "mine" not in PRESETS

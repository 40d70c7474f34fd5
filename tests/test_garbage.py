"""Random input everywhere: it is either valid or refused with a one-line error."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2_jax import config as configs
from gpt2_jax.ablation.study.design import Study
from gpt2_jax.config.check import check, check_stored
from gpt2_jax.errors import UserError, printable
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.fields import FLOAT_MAX, FLOAT_TINY, Field
from gpt2_jax.interop.import_model import read_config
from gpt2_jax.placements.axes import SCALES
from gpt2_jax.placements.expressions import FUNCTIONS, NAMES, parse_expression, parse_scale

few = settings(
    max_examples=60,
    deadline=20_000,  # an expression that explodes takes minutes; a busy machine is slow
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**32, 2**64, 1e-300, 1e300, -0.0, 0, -1]),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
VALUES = JSON | st.binary(max_size=4) | st.tuples(st.text(max_size=70))
NAMES_OF_FIELDS = st.sampled_from(sorted(configs.FIELDS))
RULE_TEXT = st.text(st.sampled_from([*"lLsSdt0123456789.+-*/%()<>=,| e"]), max_size=40) | st.lists(
    st.sampled_from([*NAMES, *FUNCTIONS, *"0123456789.+-*/%(),|", "**", "//", "==", "9**9"]),
    max_size=30,
).map("".join)


def refused(action, *args):
    """Returns whether input is refused; any exception other than UserError is a failure."""
    try:
        action(*args)
    except UserError as error:
        line = printable(str(error))
        assert "\n" not in line and "\x1b" not in line and line
        return True
    return False


def replaced(changes):
    values = {name: configs.validated(name, value) for name, value in changes.items()}
    return configs.replace(configs.Config(), values)


@few
@given(st.dictionaries(NAMES_OF_FIELDS, VALUES, max_size=3))
def test_any_value_of_a_field_is_valid_or_refused(changes):
    def enter():
        config = replaced(changes)
        check(config)
        return config

    if not refused(enter):
        config = enter()
        assert configs.from_dict(configs.to_dict(config), "config.json") == config
        for name, value in configs.flatten(config).items():
            assert value is None or type(value) is configs.FIELDS[name].kind


@few
@given(JSON | st.dictionaries(st.sampled_from(["model", "train", "seed", "data", "a"]), JSON))
def test_any_json_is_a_config_or_refused(tmp_path, stored):
    def enter():
        check_stored(configs.from_dict(stored, tmp_path), tmp_path)

    if not isinstance(stored, dict):
        assert refused(enter)
    else:
        refused(enter)


@few
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode("utf-8", "replace")))
def test_any_file_is_a_config_or_refused(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    refused(lambda: check_stored(configs.from_json(path), path))


HF = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12}
HF |= {"vocab_size": 11, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
HF_NAMES = [*HF, "n_inner", "initializer_range", "tie_word_embeddings", "quantization_config"]


@few
@given(st.dictionaries(st.sampled_from(HF_NAMES), JSON, min_size=1, max_size=3))
def test_any_huggingface_config_is_converted_or_refused(tmp_path, changes):
    refused(lambda: check_stored(read_config(HF | changes), tmp_path))


@few
@given(
    st.lists(st.dictionaries(NAMES_OF_FIELDS, VALUES, max_size=2), max_size=3),
    st.lists(NUMBERS, max_size=3),
    VALUES,
)
def test_any_study_is_valid_or_refused(variants, seeds, budget):
    refused(lambda: Study(variants, {}, seeds=tuple(seeds), tokens=budget).check())


@few
@given(st.sampled_from(SCALES), RULE_TEXT)
def test_any_expression_has_finite_values_or_is_refused(axis, text):
    def enter():
        check(replaced({f"placement.{axis}": text}))

    if not refused(enter):
        model = configs.Config().model
        (tower,) = model.towers
        for index, part in enumerate(text.split("|")):
            assert math.isfinite(parse_scale(part).first(model.sizes(tower).values(1, index)))


@few
@given(st.text(max_size=30))
def test_any_layer_overrides_are_valid_or_refused(text):
    refused(lambda: check(replaced({"placement.layer_overrides": text})))


@few
@given(*[VALUES] * 2, NUMBERS, NUMBERS)
def test_any_sampling_params_are_valid_or_refused(penalty, temperature, top_k, top_p):
    numbers = [x if isinstance(x, int | float) else 1.0 for x in (penalty, temperature)]
    refused(SamplingParams(*numbers, top_k, top_p).check)


@few
@given(st.text(st.characters()))
def test_printed_text_has_no_control_characters(text):
    shown = printable(text)
    assert shown.isascii() or all(c not in "\x1b\x9b\u202e\u200b\n\r" for c in shown)
    assert all(ord(c) >= 32 for c in shown)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (
            Field(1, int, "", minimum=1, maximum=5),
            [1, 5],
            [0, 6, 10**5000, True, 1.0, "1", None, [1]],
        ),
        (
            Field(1.0, float, "", above=0, below=1),
            [0.5, 1e-30],
            [0, 1, 0.0, 1.0, math.nan, "0.5", True],
        ),
        (Field(1.0, float, ""), [3, FLOAT_MAX, FLOAT_TINY], [math.inf, 1e39, 1e-39, 10**400]),
        (Field(False, bool, ""), [True, False], [0, 1, "true", None]),
        (Field("a", str, "", choices=("a", "b")), ["a", "b"], ["c", "", None, 1]),
        (Field(None, str, "", longest=3), ["abc", None], ["abcd", "\x1b", "\n", b"a", "\ud800"]),
        (Field("a", str, "", path=True), ["a/" * 200], ["b" * 256, "a/" * 2100, "\0", "é" * 128]),
        (
            Field((), tuple, "", longest=2),
            [("a", "bb"), [], ["a"]],
            ["a", ("abc",), (1,), None, {"a": 1}],
        ),
    ],
)
def test_field_accepts_only_its_declared_values(field, good, bad):
    for value in good:
        taken = field.validated(value, "x")
        assert taken is None or type(taken) is field.kind
    for value in bad:
        with pytest.raises(UserError, match=r"^x"):
            field.validated(value, "x")


def test_every_number_of_the_config_is_bounded():
    for name, field in configs.FIELDS.items():
        if field.kind in (int, float):
            low = field.minimum if field.minimum is not None else field.above
            high = field.maximum if field.maximum is not None else field.below
            assert low is not None and high is not None and low < high, name
            assert field.kind is float or high <= 2**48, name
        for value in () if field.optional else (field.default,):
            assert field.validated(value, name) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9**9**2", 9.0**81),
        ("2**-1 * 4", 2.0),
        ("7//2 + 7%4", 6.0),
        ("where(l == 1, 1, 1/(l-1))", 1.0),
        ("minimum(9, 9)**30", 9.0**30),
    ],
)
def test_numbers_are_computed_in_float64(text, value):
    assert parse_expression(text)({"l": 1.0}) == value


@pytest.mark.parametrize(
    "text",
    [
        *("9**9**9**9", "l**9**9", "exp(1000)", "(0-l)**0.5", "1e400", "log(l-1)", "1/(l-1)"),
        *("exp(t)", "1e31", "minimum()", "1#", "where(0/0, 1, 2)", "-" * 99 + "1", "1+" * 99 + "1"),
        *("l" * 201, "1\0", "__import__('os')", "learned_scalar(", "1 | 2 | 3"),
    ],
)  # fmt: skip
def test_invalid_expression_is_refused_by_field(text):
    with pytest.raises(UserError, match=r"^placement\.branch_scale"):
        check(replaced({"placement.branch_scale": text}))

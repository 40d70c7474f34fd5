"""What a family of Hugging Face models is: its config fields and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from gpt2_jax.config.sections import ModelConfig, PlacementConfig
from gpt2_jax.config.table import validated
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.interop.layouts import Layout, Shape
from gpt2_jax.model.heads import LM, HeadSpec
from gpt2_jax.placements.axes import INITIAL, Placement
from gpt2_jax.placements.resolve import differences

Fields: TypeAlias = dict[str, Any]  # of a config.json
LAYER = "{layer}"  # in the names of tensors of which there is one per block

# Hugging Face's name of an activation: our name.
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# Axes in which an exported model may differ from its family's placement: config.json has a field
# for them, or they affect only training.
FREE = ("activation", "norm_eps", "drop_path", *INITIAL)
# What all families but GPT-2 do.
PLAIN_ATTENTION: Mapping[str, Any] = {
    "model.scale_attn_weights": True,
    "model.scale_attn_by_inverse_layer_idx": False,
}
# Axes of all families but GPT-2, whose preset has them: transformers draws matrices and embeddings
# with the std in config.json.
NORMAL_INIT: Mapping[str, Any] = {"init": "normal", "embedding_std": "std"}


class Sections(Protocol):
    """The sections of a config that describe a model; a `Config` has them."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def placement(self) -> PlacementConfig: ...


@dataclass(frozen=True)
class Row:
    """One of our parameters, and the tensors that it consists of.

    Attributes:
      path: in our parameter tree. names: of the tensors in the base model, with `LAYER` if the
        parameter is stacked. outside: whether they belong to a head instead.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout = Layout.SAME
    outside: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is a tensor for each block."""
        return LAYER in self.names[0]


def same(path: str, name: str, outside: bool = False) -> Row:
    """Returns the row of a parameter that is the same as its tensor."""
    return Row(path, (name,), outside=outside)


def norm(path: str, name: str, outside: bool = False) -> tuple[Row, ...]:
    """Returns the rows of a torch.nn.LayerNorm."""
    gain = same(f"{path}.gain", f"{name}.weight", outside)
    return gain, same(f"{path}.bias", f"{name}.bias", outside)


def linear(
    path: str, name: str, layout: Layout = Layout.TRANSPOSED, outside: bool = False
) -> tuple[Row, ...]:
    """Returns the rows of a torch.nn.Linear."""
    kernel = Row(f"{path}.kernel", (f"{name}.weight",), layout, outside)
    return kernel, same(f"{path}.bias", f"{name}.bias", outside)


def qkv(path: str, names: Iterable[str]) -> tuple[Row, ...]:
    """Returns the rows of the three torch.nn.Linear for q, k and v."""
    weights, biases = zip(*((f"{name}.weight", f"{name}.bias") for name in names), strict=True)
    kernel = Row(f"{path}.kernel", weights, Layout.QKV_ROWS)
    return kernel, Row(f"{path}.bias", biases, Layout.QKV_ROWS)


@dataclass(frozen=True)
class Table:
    """The tensors of one of a family's classes.

    Attributes:
      architecture: the name of the class. auto: its `Auto` class. task: its pipeline on the hub.
      rows: its parameters.
      prefix: before the names of the base model's tensors in files of this class.
      copies: tensors that repeat another, by name; files need not have them.
      saved_copies: those of them that are exported, and their originals, by name with the prefix.
      zeros: shapes of tensors for which our model has no parameter, by name with the prefix; they
        are exported as zeros.
    """

    architecture: str
    auto: str
    task: str
    rows: tuple[Row, ...]
    prefix: str = ""
    copies: Mapping[str, str] = field(default_factory=dict)
    saved_copies: Mapping[str, str] = field(default_factory=dict)
    zeros: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigField:
    """A field of config.json that has the meaning of one of ours.

    Attributes:
      theirs, ours: the names; ours is dotted. default: if the field is missing; None if required.
    """

    theirs: str
    ours: str
    default: Any = None


def _lm_head(fields: Fields, tensors: Collection[str]) -> HeadSpec:
    del fields, tensors
    return LM


@dataclass(frozen=True)
class Family:
    """Models that `transformers` implements with one set of classes.

    Attributes:
      model_type: in config.json. label: in messages.
      matches: whether a model is of this family rather than another of the same architecture.
      placement: of a model of this family with this config, apart from `FREE`; may depend on what
        config.json has a field for. description: of the placement, for messages.
      fixed: the values that some of our fields must have.
      read: returns the values of our fields, by dotted name, for those of a config.json. write: the
        inverse, without the fields that all families have.
      head: returns the head of a checkpoint with these fields and these tensors of the base model.
      table: returns the tensors of a model with this config and head.
      dropouts: fields with dropout rates. special_ids: fields with ids of special tokens.
      prefix: that some classes have; files have the base model's tensors with or without it.
      buffers: matches constants that some versions of transformers save with the weights.
      unused: matches tensors that may be in a file although its class does not use them.
      renamed: patterns of names that tensors had in earlier versions, and their replacements.
    """

    model_type: str
    label: str
    matches: Callable[[Sections], bool]
    placement: Callable[[Sections], Placement]
    description: str
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[Sections], Fields]
    table: Callable[[Sections, HeadSpec], Table]
    dropouts: tuple[str, ...]
    prefix: str
    buffers: re.Pattern[str]
    head: Callable[[Fields, Collection[str]], HeadSpec] = _lm_head
    fixed: Mapping[str, Any] = field(default_factory=dict)
    special_ids: tuple[str, ...] = ()
    unused: re.Pattern[str] = re.compile("$^")  # nothing
    renamed: tuple[tuple[str, str], ...] = ()


def read_fields(table: Iterable[ConfigField], fields: Fields) -> dict[str, Any]:
    """Returns the values of our fields, by dotted name.

    Raises:
      UserError: as `read_field`.
    """
    return {one.ours: read_field(fields, one.theirs, one.ours, one.default) for one in table}


def write_fields(table: Iterable[ConfigField], config: Sections) -> Fields:
    """Returns the fields of a config.json; the inverse of `read_fields`."""
    return {one.theirs: _value(config, one.ours) for one in table}


def _value(config: Sections, name: str) -> Any:
    section, _, leaf = name.partition(".")
    if section == "placement":
        return getattr(config.placement.resolve(), leaf)
    return getattr(config.model, leaf)


def read_field(fields: Fields, name: str, ours: str, default: Any = None) -> Any:
    """Returns a field of config.json, or its default, as a value of our field `ours`.

    Raises:
      UserError: naming the field, if it is missing, has the wrong type or is out of bounds.
    """
    value = fields.get(name)
    if value is None and default is None:
        raise UserError(f"config.json has no {name}")
    return validated(ours, default if value is None else value, f"config.json: {name}")


def read_activation(fields: Fields, name: str, default: str) -> str:
    """Returns our name of the activation in a field of config.json.

    Raises:
      UserError: if it is not in `ACTIVATIONS`.
    """
    activation = fields.get(name, default)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UserError(f"config.json: {name}={quoted(activation)} is not one of {known}")
    return ACTIVATIONS[activation]


def refuse(fields: Fields, unsupported: Iterable[str]) -> None:
    """Raises UserError if one of these fields of config.json is set."""
    for name in unsupported:
        if fields.get(name):
            raise UserError(f"config.json: {name}={quoted(fields[name])} is not supported")
    if fields.get("quantization_config"):
        raise UserError("config.json: quantized weights are not supported; use the original ones")


def dropout_note(family: Family, fields: Fields) -> str | None:
    """Returns a note about the dropout rates, which are not imported; None if they are 0."""
    rates = {name: fields[name] for name in family.dropouts if fields.get(name)}
    if not rates:
        return None
    listed = ", ".join(f"{name}={quoted(rate)}" for name, rate in rates.items())
    return f"it was trained with {listed}; set model.dropout to use dropout in further training"


def check_exportable(family: Family, config: Sections) -> None:
    """Checks that a model of a family can have this config.

    Raises:
      UserError: naming the axes or fields that differ.
    """
    placement = config.placement.resolve()
    different = differences(placement, family.placement(config))
    extra = {name: value for name, value in different.items() if name not in FREE}
    if extra:
        listed = ", ".join(f"{name}={value!r}" for name, value in extra.items())
        raise UserError(
            f"placement.preset={config.placement.preset} cannot be exported: Hugging Face's "
            f"{family.label} has {family.description}, and nothing else (here {listed})"
        )
    if placement.activation not in ACTIVATIONS:
        raise UserError(
            f"placement.activation={placement.activation} is not supported by Hugging Face"
        )
    for name, value in family.fixed.items():
        if (ours := _value(config, name)) != value:
            raise UserError(
                f"{name}={ours!r} cannot be exported: Hugging Face's {family.label} always has "
                f"{value!r}"
            )

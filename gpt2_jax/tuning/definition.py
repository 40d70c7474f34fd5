"""A model whose weights are tuned: its definition with what the method adds and trains."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax

from gpt2_jax.config import words
from gpt2_jax.config.sections import ModelConfig, PlacementConfig
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import ModelDef, define_model
from gpt2_jax.model.heads import HEADS, LM, HeadSpec
from gpt2_jax.model.stack import Params
from gpt2_jax.nn.param import ParamInfo, Role
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import Inserts
from gpt2_jax.tuning import lora
from gpt2_jax.tuning.lora import Matrix

LOW_RANK = ("lora", "dora")
INSERTS = ("adapter", "prefix", "prompt")  # what they add cannot be merged into the weights


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankModel(ModelDef):
    """A model with low-rank updates of some of its matrices.

    Its parameters are those of `plain` and the updates (see `lora`).

    Attributes:
      plain: the model without updates. updated: the matrices that have one.
      tune: rank, alpha and method.
    """

    plain: ModelDef
    updated: tuple[Matrix, ...]
    tune: TuneConfig

    def bind(self, params: Params) -> Any:
        """Returns the module with the updates added to its matrices."""
        plain = self.plain
        if self.gather is not None:
            parts = _without_updates(self.gather.parts)
            plain = replace(plain, gather=replace(self.gather, parts=parts))
        scale = self.tune.alpha / self.tune.rank
        return plain.bind(lora.merge(params, self.updated, scale, self.gather))

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters; the updates are 0."""
        return self._with_updates(self.plain.init(key), key)

    def with_weights(self, params: Params, weights: Params) -> Params:
        """Returns initial parameters with the weights of a model like `plain`."""
        params = super().with_weights(params, weights)
        if self.tune.method != "dora":
            return params
        lengths = {(*m.lora_keys, "m"): lora.lengths(m, weights) for m in self.updated}
        return lora.with_added(params, lengths)

    def merged(self, params: Params) -> tuple[ModelDef, Params]:
        """Returns the model without updates, and parameters that contain them."""
        scale = self.tune.alpha / self.tune.rank
        merge = jax.jit(lambda params: lora.merge(params, self.updated, scale, None))
        return self.plain, merge(params)

    def flops_per_token(self, seq_len: int) -> int:
        """Returns those of the model without updates."""
        return self.plain.flops_per_token(seq_len)

    def _with_updates(self, params: Params, key: jax.Array) -> Params:
        added: dict[tuple[str, ...], Any] = {}
        for matrix in self.updated:
            values = lora.initial(matrix, self.tune.rank, key)
            if self.tune.method == "dora":
                values["m"] = lora.lengths(matrix, params)
            added[matrix.lora_keys] = values
        return lora.with_added(params, added)


def define_tuned(
    model: ModelConfig,
    placement: PlacementConfig,
    tune: TuneConfig,
    target: Target | None = None,
    head: HeadSpec = LM,
) -> ModelDef:
    """Returns the model that the sections `model`, `placement` and `tune` define.

    A head of labels or of masked tokens is always trained.

    Args:
      target, head: as in `define_model`.

    Raises:
      UserError: if a pattern matches nothing that the method can tune, or the placement does not
        support the method.
    """
    plain = define_model(model, placement, target, head, _inserts(tune))
    if tune.method == "none":
        return plain
    if tune.method == "prefix" and plain.spec.attention.shaped:
        raise UserError(
            f"tune.method=prefix does not support placement.preset={placement.preset}, whose "
            "attention weights depend on the number of tokens; set tune.method=prompt"
        )
    names = lora.all_names(plain)
    _check_patterns("trained", words(tune.trained), [name for name, _ in names])
    tuned = _with_low_rank(plain, tune) if tune.method in LOW_RANK else plain
    return replace(tuned, trained=partial(_is_trained, tune, head != LM))


def _inserts(tune: TuneConfig) -> Inserts:
    sizes = {"adapter": tune.rank, "prefix": tune.length, "prompt": tune.length}
    return Inserts(**{tune.method: sizes[tune.method]}) if tune.method in sizes else Inserts()


def _with_low_rank(plain: ModelDef, tune: TuneConfig) -> LowRankModel:
    if plain.spec.unit_weights:
        raise UserError(
            f"tune.method={tune.method} does not support placement.unit_weights, which scales the "
            "matrices to unit length after each step; set tune.method=bitfit"
        )
    possible = {m: [n for _, n in plain.row_names(m.name)] for m in lora.matrices(plain)}
    _check_targets(plain, tune, [name for names in possible.values() for name in names])
    updated = tuple(
        m for m, names in possible.items() if any(_is_target(tune, name) for name in names)
    )
    magnitude = tune.method == "dora"
    infos = {m.lora_keys: lora.added_infos(m, magnitude) for m in updated}
    shapes = {m.lora_keys: lora.added_shapes(m, tune.rank, magnitude) for m in updated}
    given = {f.name: getattr(plain, f.name) for f in fields(plain)}
    given["infos"] = lora.with_added(plain.infos, infos)
    given["shapes"] = lora.with_added(plain.shapes, shapes)
    return LowRankModel(**given, plain=plain, updated=updated, tune=tune)


def _check_targets(plain: ModelDef, tune: TuneConfig, possible: list[str]) -> None:
    """Refuses patterns of tables, and those that match no matrix."""
    for pattern in words(tune.targets):
        if plain.cfg.tie_head and _matches("wte", pattern):
            raise UserError(
                f"tune.targets: {pattern!r} matches wte, which is also the output matrix "
                "(model.tie_head), so that an update would change both; choose matrices of the "
                f"blocks, such as {possible[0]}"
            )
        for name, info in lora.all_names(plain):
            if info.role in (Role.EMBEDDING, Role.HEAD) and _matches(name, pattern):
                raise UserError(
                    f"tune.targets: {pattern!r} matches {name}, which is not a matrix of a block; "
                    f"choose one such as {possible[0]}, or train {name} with tune.trained"
                )
    _check_patterns("targets", words(tune.targets), possible)


def _check_patterns(field: str, patterns: tuple[str, ...], names: list[str]) -> None:
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            examples = ", ".join(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
            raise UserError(
                f"tune.{field}: the pattern {pattern!r} matches nothing; names look like {examples}"
            )


def _is_trained(tune: TuneConfig, has_head: bool, name: str, info: ParamInfo) -> bool:
    """Returns whether a method trains a parameter.

    Args:
      has_head: whether the model's top-level `HEADS` belong to its task.
    """
    if has_head and name.partition(".")[0] in HEADS:
        return True
    if any(_matches(name, pattern) for pattern in words(tune.trained)):
        return True
    if tune.method == "bitfit":
        return info.role == Role.BIAS
    if tune.method in INSERTS:
        return info.role == Role.ADAPTER
    target = lora.target_name(name)
    return target is not None and _is_target(tune, target)


def _is_target(tune: TuneConfig, name: str) -> bool:
    patterns = words(tune.targets)
    return not patterns or any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a pattern of `optimizer.frozen` or `tune` matches a name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _without_updates(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {key: _without_updates(x) for key, x in tree.items() if key != lora.LORA}

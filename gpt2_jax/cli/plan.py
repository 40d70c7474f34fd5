"""Plans a run on hardware that need not be there: memory, collectives, time and cost.

gpt2-jax plan --config=gpt2:1558m --target=v5e:4x4
gpt2-jax plan --config=gpt2:1558m --target=h100:8 --config.train.accumulation=4
gpt2-jax plan --config=gpt2:1558m --target=h100:4x8 --search
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt2_jax import cli
from gpt2_jax.config.check import check_values
from gpt2_jax.config.convert import to_dict
from gpt2_jax.config.sections import MeshConfig
from gpt2_jax.config.table import resolve
from gpt2_jax.config.task_rules import check_is_lm
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.scale.targets import EXAMPLES, LOCAL, Machine, parse_target, require_compiler
from gpt2_jax.track.console import say, status

if TYPE_CHECKING:
    from gpt2_jax.model.definition import ModelDef
    from gpt2_jax.scale.compiler import TooLarge
    from gpt2_jax.scale.plan import Planner
    from gpt2_jax.scale.report import Plan

_CONFIG = cli.define_config("config file; --config.section.field=value changes a field")
_TARGET = flags.DEFINE_string(
    "target", None, "machine: v5e:4x4, v5p:2x2x4, v6e:2x4, h100:8, h100:4x8 (hosts x GPUs), local"
)
_PRICE = flags.DEFINE_float("price", None, "US dollars per device and hour", 0, 1e6)
_TIMEOUT = flags.DEFINE_float("timeout", 900, "seconds for each compilation", 1, 1e6)
_SEARCH = flags.DEFINE_bool(
    "search", False, "look for the fastest mesh, micro-batch and remat policy"
)
_BEST = flags.DEFINE_integer("best", 3, "how many plans --search compiles and lists", 1, 100)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of text")


def main(argv: list[str]) -> None:
    """Prints the plan."""
    del argv
    if _CONFIG.value is None:
        raise UserError("pass --config, for example --config=gpt2:124m")
    if not _TARGET.value:
        raise UserError(f"pass --target, the machine to plan for: {EXAMPLES}")
    config, machine = cli.read_config(_CONFIG), parse_target(_TARGET.value)
    check_is_lm(config.task, "gpt2-jax plan")
    require_compiler(machine)
    # The mesh of another machine is checked with its number of devices.
    local = machine.name == LOCAL
    check_values(config if local else dataclasses.replace(config, mesh=MeshConfig()))
    config = resolve(config, load_tokenizer(config.data.tokenizer).size)
    run(config, machine)


def run(config: Any, machine: Machine) -> None:
    """Plans a resolved config and prints the result."""
    # Imported after the flags are validated: jax takes a second to load.
    import jax

    from gpt2_jax.model.definition import define_model
    from gpt2_jax.nn.target import Target
    from gpt2_jax.scale.plan import Planner
    from gpt2_jax.train.compiled_step import state_bytes
    from gpt2_jax.train.report import total_tokens

    jax.config.update("jax_platforms", "cpu")  # this process only needs shapes
    model = define_model(config.model, config.placement, Target("cpu"))
    planner = Planner(
        machine,
        to_dict(config),
        total_tokens(config),
        state_bytes(config, model),
        _PRICE.value,
        _TIMEOUT.value,
    )
    if _SEARCH.value:
        print_search(planner, config, model)
    else:
        print_plan(planner, config)


def print_plan(planner: Planner, config: Any) -> None:
    """Prints the plan of a config as it is."""
    from gpt2_jax.scale.compiler import TooLarge
    from gpt2_jax.scale.report import as_json, as_text, too_large_text

    machine = planner.machine
    mesh = planner.mesh(config.model, config.train, config.mesh)
    with status(f"compiling the train step for {machine.name}"):
        plan = planner.plan(mesh)
    if _JSON.value:
        print(as_json(plan))
    elif isinstance(plan, TooLarge):
        print(too_large_text(machine.name, plan, machine.chip.memory if machine.chip else None))
    else:
        print(as_text(plan, config.model, config.train, planner.total_tokens))


def print_search(planner: Planner, config: Any, model_def: ModelDef) -> None:
    """Prints the fastest plans that fit."""
    from gpt2_jax.scale.compiler import TookTooLong
    from gpt2_jax.scale.report import as_json, search_text
    from gpt2_jax.scale.search import Candidate, Workload, candidates, search

    machine, train, seq_len = planner.machine, config.train, config.data.seq_len
    if machine.chip is None:
        raise UserError("--search needs a machine whose speed is known, not --target=local")
    work = Workload(
        *(config.model, config.optimizer, train.batch_size, seq_len, model_def.n_params()),
        *(model_def.flops_per_token(seq_len), machine.chip, machine.per_host),
    )
    found = candidates(config.model, train, config.mesh, machine.n_devices)
    ranked = work.ranked(found)

    def plan(candidate: Candidate) -> Plan | TooLarge | None:
        try:
            with status(f"compiling {candidate.label}"):
                return planner.plan(candidate.changes)
        except TookTooLong as error:
            say(f"skipped: {error}")
            return None

    say(f"{len(ranked)} of {len(found)} combinations may fit")
    best = search(ranked, work.guess_bytes, plan, _BEST.value)
    if not best:
        raise UserError(
            f"no mesh, micro-batch and remat policy was found that fits on {machine.name}; take "
            "more devices or a smaller model"
        )
    if _JSON.value:
        for candidate, made in best:
            print(as_json(made, candidate.changes))
    else:
        print(search_text([(one.cells, made) for one, made in best], planner.total_tokens))
        print(f"\nthe first: {best[0][0].flags}")

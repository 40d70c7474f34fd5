"""`gpt2-jax COMMAND --flags`: one console script for all commands."""

from __future__ import annotations

import sys
from importlib import import_module

from gpt2_jax import cli
from gpt2_jax.errors import EXIT_WRONG_INPUT, suggestion

# Command: the module that defines its flags, and its description.
COMMANDS = {
    "train": ("train", "pretrain a model, or resume a run"),
    "plan": ("plan", "estimate memory, time and cost on hardware that need not be there"),
    "eval": ("evaluate", "evaluate a run: loss, perplexity, lm-evaluation-harness tasks"),
    "sample": ("sample", "generate text with a run's model"),
    "predict": ("predict", "tags, labels or answers for texts, by a fine-tuned model"),
    "translate": ("predict", "translate lines of text with a run's model"),
    "prepare": ("prepare", "tokenize a corpus, or verify a prepared one"),
    "import": ("huggingface", "import a Hugging Face checkpoint as a run"),
    "export": ("huggingface", "export a run as a Hugging Face checkpoint"),
    "check": ("huggingface", "compare an imported GPT-2 124M with published results"),
    "placements": ("placements", "list the published placements, or show one"),
    "diagnose": ("diagnose", "compare placements by depth, before training or at checkpoints"),
    "ablate": ("ablate", "run an ablation study, or resume one"),
    "report": ("report", "write a study's report"),
    "pack": ("pack", "pack a study's directory to continue it elsewhere"),
}


def main() -> None:
    """Runs the command named by the first argument."""
    cli.use_utf8()
    program, *words = sys.argv
    if not words or words[0] in cli.HELP:
        print(usage())
        sys.exit(0 if words else EXIT_WRONG_INPUT)
    name = words[0]
    if name not in COMMANDS:
        cli.die(f"{name!r} is not a command{suggestion(name, COMMANDS)}")
    module = import_module(f"gpt2_jax.cli.{COMMANDS[name][0]}")
    sys.modules["__main__"].__doc__ = module.__doc__  # absl prints it for --help
    cli.run(module.main, [f"{program} {name}", *words[1:]])


def usage() -> str:
    """Returns the list of commands."""
    lines = ["usage: gpt2-jax COMMAND --flag=value ...", "", "commands:"]
    lines += [f"  {name:<11} {meaning}" for name, (_, meaning) in COMMANDS.items()]
    lines += ["", "gpt2-jax COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

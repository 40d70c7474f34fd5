"""Checkpoints in and out of the Hugging Face world.

python -m gpt2_jax.interop.huggingface import --model=DIR_OR_HUB_NAME --workdir=runs/gpt2
python -m gpt2_jax.interop.huggingface export --workdir=runs/quickstart --out=DIR [--dtype=…]
python -m gpt2_jax.interop.huggingface check --workdir=runs/gpt2 [--task_data=DIR]
"""

from __future__ import annotations

import sys

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError

COMMANDS = ("import", "export", "check")

_MODEL = flags.DEFINE_string("model", None, "import: a folder, or a name on the Hugging Face hub")
_WORKDIR = flags.DEFINE_string("workdir", None, "the run directory to make, or to export")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "import: as data.tokenizer; unset: the checkpoint's own"
)
_PICKLE = flags.DEFINE_bool(
    "allow_pickle", False, "import: read pytorch_model.bin, by torch.load(weights_only=True)"
)
_OUT = flags.DEFINE_string("out", None, "export: the folder to make")
_DTYPE = flags.DEFINE_string("dtype", "float32", "export: float32, bfloat16 or float16")
_TASK_DATA = flags.DEFINE_string(
    "task_data", None, "check: folder with wikitext2_raw/ and lambada/, for their two figures"
)
_STEP = flags.DEFINE_string("step", None, "export: a step, or best; unset: the latest")


def main(command: str) -> None:
    """Imports, exports, or compares with the figures of the released 124M, as the flags say."""
    if not _WORKDIR.value:
        raise UserError("give --workdir, the run directory to make (import), to export or to check")
    if command == "import":
        if not _MODEL.value:
            raise UserError("give --model, a folder with config.json, or a name on the hub")
        # Imported once the flags are known to be right: jax takes a second to load.
        from gpt2_jax.interop.importing import import_model

        for line in import_model(_MODEL.value, _WORKDIR.value, _TOKENIZER.value, _PICKLE.value):
            print(line)
        print(f"made {_WORKDIR.value}: eval.py, sampling and --config.train.init_from take it")
    elif command == "check":
        from gpt2_jax.interop.check import check_gpt2

        agree = True
        for finding in check_gpt2(_WORKDIR.value, _TASK_DATA.value):
            print(finding, flush=True)
            agree &= finding.agrees
        sys.exit(0 if agree else 1)
    else:
        if not _OUT.value:
            raise UserError("give --out, the folder to make")
        from gpt2_jax.interop.exporting import export_model

        print(export_model(_WORKDIR.value, _OUT.value, _DTYPE.value, _STEP.value))


if __name__ == "__main__":
    cli.run_commands(main, COMMANDS)

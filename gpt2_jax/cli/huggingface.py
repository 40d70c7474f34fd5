"""Imports and exports Hugging Face checkpoints, and checks an imported GPT-2.

gpt2-jax import --model=DIR_OR_HUB_NAME --workdir=runs/gpt2
gpt2-jax export --workdir=runs/quickstart --out=DIR [--dtype=… | --adapter [--base=…]]
gpt2-jax check --workdir=runs/gpt2 [--task_data=DIR]
"""

from __future__ import annotations

import sys

from absl import flags

from gpt2_jax import cli
from gpt2_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", None, "import: a folder, or a name on the Hugging Face hub")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory to create, export or check")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "import: a data.tokenizer; default: the checkpoint's tokenizer"
)
_PICKLE = flags.DEFINE_bool(
    "allow_pickle", False, "import: read pytorch_model.bin with torch.load(weights_only=True)"
)
_OUT = flags.DEFINE_string("out", None, "export: folder to create")
_DTYPE = flags.DEFINE_string("dtype", "float32", "export: float32, bfloat16 or float16")
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "export: only the run's LoRA, as a folder of Hugging Face's peft"
)
_BASE = flags.DEFINE_string(
    "base", None, "the base model of an adapter of peft: a folder, or a name on the hub"
)
_TASK_DATA = flags.DEFINE_string(
    "task_data", None, "check: folder with wikitext2_raw/ and lambada/; default: skip these two"
)
_STEP = flags.DEFINE_string("step", None, "export: a step, or best; default: the latest")
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Runs the command `import`, `export` or `check`, the last word of the program's name."""
    command = argv[0].rpartition(" ")[2]
    if not _WORKDIR.value:
        raise UserError("pass --workdir, the run directory to create (import), export or check")
    if command == "import":
        if not _MODEL.value:
            raise UserError("pass --model, a folder with config.json or a name on the hub")
        # Imported after the flags are checked, because jax takes a second to load.
        from gpt2_jax.interop.import_model import import_model

        options = (_TOKENIZER.value, _PICKLE.value, _BASE.value)
        for line in import_model(_MODEL.value, _WORKDIR.value, *options):
            print(line)
        print(f"wrote {_WORKDIR.value}, for eval.py, sampling and --config.train.init_from")
    elif command == "check":
        from gpt2_jax.interop.check import check_gpt2

        agree = True
        for finding in check_gpt2(_WORKDIR.value, _TASK_DATA.value):
            print(finding, flush=True)
            agree &= finding.agrees
        sys.exit(0 if agree else 1)
    else:
        if not _OUT.value:
            raise UserError("pass --out, the folder to create")
        if _ADAPTER.value:
            from gpt2_jax.interop.export_adapter import export_adapter

            print(export_adapter(_WORKDIR.value, _OUT.value, _BASE.value, _STEP.value))
            return
        from gpt2_jax.interop.export_model import export_model

        print(export_model(_WORKDIR.value, _OUT.value, _DTYPE.value, _STEP.value))

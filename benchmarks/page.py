"""Runs the benchmarks of docs/performance.md for this machine's hardware and updates their tables.

    python -m benchmarks.page [--only=NAME]        (or: make benchmark)

A table in the page is the output of a command:

    <!-- cpu: python -m benchmarks.remat --config=quickstart -->
    ...
    <!-- end -->

`cpu` or `gpu` is the platform that the command is for; `plan` is for any machine with the extra
`plan-gpu`. Tables of another platform stay as they are, and so does the page if a command fails.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from gpt2_jax.errors import UserError
from gpt2_jax.scale.targets import parse_target, require_compiler

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BLOCK = re.compile(
    r"(<!-- (?P<platform>cpu|gpu|plan): python -m (?P<command>benchmarks\.\w+[^\n]*?) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)


def updated(text: str, platform: str, run: Callable[[list[str]], str], only: str = "") -> str:
    """Returns the page with the tables of a platform replaced by new output.

    Args:
      run: returns the output of a benchmark: its module and arguments. only: part of the commands
      to run.
    """

    def replaced(block: re.Match[str]) -> str:
        if block["platform"] != platform or only not in block["command"]:
            return block[0]
        return f"{block[1]}\n{run(shlex.split(block['command'])).strip()}\n\n{block[4]}"

    return BLOCK.sub(replaced, text)


def platforms() -> list[str]:
    """Returns the platforms whose tables this machine can make."""
    found = [jax.default_backend()]
    with suppress(UserError):
        require_compiler(parse_target("h100:1"))
        found.append("plan")
    return found


def output_of(command: list[str]) -> str:
    """Runs a benchmark, `benchmarks.NAME` and its arguments, and returns what it prints."""
    print(f"python -m {shlex.join(command)}", file=sys.stderr, flush=True)
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PAGE.parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only commands that contain this")
    args = parser.parse_args()
    text = PAGE.read_text("utf-8")
    for platform in platforms():
        text = updated(text, platform, output_of, args.only)
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

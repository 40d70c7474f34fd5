"""Lists the package's modules that depend on the whole config, and fails if there are too many.

    python -m benchmarks.config_modules

A module depends on the whole config if it imports `gpt2_jax.config` or its `Config`, or names
`ConfigDict`. Importing a section, such as `OptimizerConfig`, does not count, nor do the modules of
`gpt2_jax/config/`.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gpt2_jax"
LIMIT = 17


def takes_whole_config(source: str) -> bool:
    """Returns whether a module's source imports the whole config or names `ConfigDict`."""
    for node in ast.walk(ast.parse(source)):
        names = {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
        match node:
            case ast.ImportFrom(module="gpt2_jax") if "config" in names:
                return True
            case ast.ImportFrom(module="gpt2_jax.config" | "gpt2_jax.config.sections"):
                if "Config" in names:
                    return True
            case ast.Import() if "gpt2_jax.config" in names:
                return True
            case ast.Name(id="ConfigDict") | ast.Attribute(attr="ConfigDict"):
                return True
            case ast.alias(name="ConfigDict"):
                return True
    return False


def main() -> None:
    """Prints the modules and how many there are."""
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "config" not in path.parents]
    found = [path for path in sorted(files) if takes_whole_config(path.read_text("utf-8"))]
    print(*(path.relative_to(PACKAGE.parent) for path in found), sep="\n")
    print(f"{len(found)} modules depend on the whole config; the limit is {LIMIT}")
    sys.exit(len(found) > LIMIT)


if __name__ == "__main__":
    main()

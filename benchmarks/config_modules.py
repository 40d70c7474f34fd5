"""Lists the package's modules that take the whole config, and fails if there are too many.

    python -m benchmarks.config_modules

A module takes the whole config if it imports `gpt2_jax.config` itself or `Config` from it, or names
`ConfigDict`. One that imports a section, such as `OptimizerConfig`, takes only what it needs. The
modules of `gpt2_jax/config/` are not counted.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gpt2_jax"
MOST = 17


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
    """Prints the modules and their number."""
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "config" not in path.parents]
    found = [path for path in sorted(files) if takes_whole_config(path.read_text("utf-8"))]
    print(*(path.relative_to(PACKAGE.parent) for path in found), sep="\n")
    print(f"{len(found)} modules take the whole config; at most {MOST} may")
    sys.exit(len(found) > MOST)


if __name__ == "__main__":
    main()

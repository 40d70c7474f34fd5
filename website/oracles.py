"""The source of each preset's oracle, extracted from tests/model/oracles without importing it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = "tests/model/oracles"
BASE = f"{FOLDER}/base.py"  # shared by all oracles


@dataclass(frozen=True)
class Oracle:
    """The source of an oracle, with the helpers of its module that it calls."""

    path: str
    source: str


@cache
def oracles() -> dict[str, Oracle]:
    """Returns the oracle of each preset by name."""
    found: dict[str, Oracle] = {}
    aliases: dict[str, str] = {}
    for path in sorted((ROOT / FOLDER).glob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        sources = {name: ast.get_source_segment(text, node) for name, node in functions.items()}
        for name, node in functions.items():
            if any(isinstance(d, ast.Name) and d.id == "oracle" for d in node.decorator_list):
                needed = _needed(name, functions)
                source = "\n\n\n".join(f"{sources[one]}" for one in functions if one in needed)
                found[name] = Oracle(f"{FOLDER}/{path.name}", source)
        aliases |= _aliases(tree)
    return found | {name: found[same] for name, same in aliases.items()}


def _needed(name: str, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Returns a function's name and those of the functions of its module that it uses."""
    needed, left = set[str](), [name]
    while left:
        here = left.pop()
        if here not in needed:
            needed.add(here)
            used = {node.id for node in ast.walk(functions[here]) if isinstance(node, ast.Name)}
            left += sorted(used & functions.keys() - {"oracle"})
    return needed


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Returns presets that share an oracle: `ORACLES["ds_init"] = norms.post_ln`."""
    out = {}
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[
                    ast.Subscript(value=ast.Name(id="ORACLES"), slice=ast.Constant(value=str(name)))
                ],
                value=ast.Attribute(attr=same),
            ):
                out[name] = same
    return out

"""Text files and pipes are UTF-8 in every locale."""

import ast

import pytest

from tests.tools import ROOT

SOURCES = [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "gpt2_jax").rglob("*.py"))]
POSITION = {"read_text": 0, "write_text": 1}  # of the `encoding` argument


def uses_locale_encoding(call: ast.Call) -> bool:
    """Returns whether a call reads or writes text without an explicit encoding."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in POSITION:
        return len(call.args) <= POSITION[name]
    if isinstance(call.func, ast.Name) and name == "open":
        mode = given.get("mode") or (call.args[1] if len(call.args) > 1 else ast.Constant("r"))
        return "b" not in str(getattr(mode, "value", ""))
    text = given.get("text") or given.get("universal_newlines")
    return isinstance(text, ast.Constant) and text.value is True


@pytest.mark.parametrize(
    ("code", "is_open"),
    [
        ("p.read_text()", True),
        ("p.read_text(errors='replace')", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(x, encoding='utf-8')", False),
        ("open(p, 'a', buffering=1)", True),
        ("open(p, 'rb')", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, text=True, encoding='utf-8')", False),
    ],
)
def test_calls_without_encoding_are_found(code, is_open):
    assert uses_locale_encoding(ast.parse(code).body[0].value) == is_open


def test_all_calls_pass_an_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and uses_locale_encoding(node)
    ]
    assert found == []

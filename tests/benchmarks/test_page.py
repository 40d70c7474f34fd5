"""docs/performance.md: its tables are the output of commands that exist."""

import importlib.util
import shlex

import pytest

from benchmarks.page import BLOCK, PAGE, updated

TEXT = """# Title

<!-- cpu: python -m benchmarks.a --steps=3 'x y' -->

| old |

<!-- end -->
between
<!-- gpu: python -m benchmarks.b -->
| kept |
<!-- end -->
<!-- cpu: python -m benchmarks.c -->
<!-- end -->
"""


def test_tables_of_this_platform_are_replaced():
    ran = []

    def run(command):
        ran.append(command)
        return f"| new {command[0]} |\n"

    found = updated(TEXT, "cpu", run)
    assert ran == [["benchmarks.a", "--steps=3", "x y"], ["benchmarks.c"]]
    assert found == TEXT.replace("| old |", "| new benchmarks.a |").replace(
        "benchmarks.c -->\n", "benchmarks.c -->\n\n| new benchmarks.c |\n\n"
    )
    assert updated(found, "cpu", run) == found
    assert updated(TEXT, "tpu", run) == TEXT
    compiled = TEXT.replace("gpu: python", "plan: python")
    assert updated(compiled, "plan", run) == compiled.replace(
        "| kept |", "\n| new benchmarks.b |\n"
    )


def test_only_some_tables_can_be_replaced():
    found = updated(TEXT, "cpu", lambda command: "| new |", only="benchmarks.c")
    assert "| old |" in found and "| new |" in found


def test_page_stays_as_it_is_if_a_command_fails(tmp_path, monkeypatch):
    from benchmarks import page

    copy = tmp_path / "performance.md"
    copy.write_text(TEXT)
    monkeypatch.setattr(page, "PAGE", copy)
    monkeypatch.setattr("sys.argv", ["page"])

    def fails(command):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(page, "output_of", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        page.main()
    assert copy.read_text() == TEXT


def test_commands_of_the_page_exist():
    blocks = list(BLOCK.finditer(PAGE.read_text("utf-8")))
    assert blocks
    for block in blocks:
        module, *_ = shlex.split(block["command"])
        assert importlib.util.find_spec(module) is not None, module
    assert PAGE.read_text("utf-8").count("<!-- end -->") == len(blocks)

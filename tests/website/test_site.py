"""The generated parts of the documentation site: equations, drawings, a page per preset."""

import json
import re
from xml.etree import ElementTree

import pytest

from gpt2_jax.cli.main import COMMANDS
from gpt2_jax.config import FIELDS
from gpt2_jax.placements import PRESETS
from gpt2_jax.placements.registry import SUPPORTS
from tests.tools import ROOT
from website import gallery, reference
from website.drawing import drawings
from website.equations import latex_lines, mathml, render_math, to_latex
from website.oracles import oracles

MATH = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture
def counted(monkeypatch):
    """Replaces the parameter counts, which take seconds for all presets."""
    monkeypatch.setattr(gallery, "counts", lambda name: (124_000_000 + len(name), 855_000_000))
    gallery._base_counts.cache_clear()
    yield
    gallery._base_counts.cache_clear()


@pytest.mark.parametrize("name", PRESETS)
def test_every_equation_becomes_mathml_without_loss(name):
    """All letters and digits of the catalogue's text are in the MathML, in the same order."""
    equation = PRESETS[name].equation
    shown = ""
    for line in latex_lines(equation):
        shown += "".join(ElementTree.fromstring(mathml(line, display=True)).itertext())
    assert "\\" not in shown
    spelled = equation.replace("σ", "").replace("\u0302", "")
    for word in ("sum", "sqrt"):
        spelled = re.sub(rf"\b{word}(?=[_(])", "", spelled)
    spelled = re.sub(r"\b1e-(\d)", r"10\1", spelled)
    letters = lambda text: re.findall(r"[A-Za-z0-9]", text)
    assert letters(shown.replace("σ", "")) == letters(spelled)


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x' = N(a x + F(x))", r"x^{\prime} = N(a x + F(x))"),
        ("a = (2 L)^1/4", r"a = (2 L)^{1/4}"),
        ("x̂ = N2(x_{s+1})", r"\hat{x} = N_{2}(x_{s+1})"),
        ("g a GRU's gate", r"g \;\text{a GRU's gate}"),
        ("N(x)/sqrt(2 l)", r"N(x)/\sqrt{2 l}"),
        ("L_base/L", r"L_{\text{base}}/L"),
        ("the head reads head_h(x)", r"\text{the head reads}\;\operatorname{head}_{h}(x)"),
    ],
)
def test_words_and_math_are_distinguished(text, latex):
    assert to_latex(text) == latex


def test_unsupported_character_is_named():
    with pytest.raises(ValueError, match="'#'"):
        to_latex("x # y")


def test_formulas_of_a_page_become_mathml():
    html = (
        r'<p>So <span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[x\]</div>'
    )
    page = ElementTree.fromstring(f"<body>{render_math(html)}</body>")
    inline, block = page.iter(f"{MATH}math")
    assert [inline.get("display"), block.get("display")] == ["inline", "block"]
    assert "".join(inline.itertext()) == "a<b"


@pytest.mark.parametrize("name", PRESETS)
def test_drawing_matches_the_spec_of_the_block(name):
    """It has the norms and layers of the spec, inside the picture, for each kind of block."""
    spec = gallery.spec_of(name)
    made = drawings(spec)
    assert len(made) == len(dict.fromkeys(stack.block for stack in spec.stacks))
    block = spec.stacks[-1].block
    svg = ElementTree.fromstring(made[-1][1])
    kinds = [shape.get("class").split()[1] for shape in svg.iter("rect")]
    drawn = [
        (site, s.name)
        for s in block.sublayers
        for site in s.norm_sites & {"stream", "skip", "pre", "out", "post"}
    ]
    once = {
        "parallel": {"stream", "skip", "post"},
        "parallel_shared": {"stream", "skip", "post", "pre"},
    }
    shared = once.get(spec.connection.name, set())
    n_norms = len({site if site in shared else (site, name) for site, name in drawn})
    assert kinds.count("norm") == n_norms
    assert kinds.count("attention") == kinds.count("mlp") == 1
    _, _, width, height = map(float, svg.get("viewBox").split())
    for rect in svg.iter("rect"):
        x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= width and y >= -height and y + h <= 0


def test_every_preset_has_a_page_with_its_oracle(counted):
    pages = dict(gallery.pages())
    assert {f"gallery/{name}.md" for name in PRESETS} <= pages.keys()
    assert set(oracles()) == set(PRESETS)
    index = pages["gallery/index.md"]
    for name, placement in PRESETS.items():
        page = pages[f"gallery/{name}.md"]
        assert page.startswith(f"# {name}\n") and f'href="{name}.html"' in index
        assert "<math" in page and "<svg" in page and "return m.head" in page
        assert placement.note in page
        assert f"{124_000_000 + len(name):,}" in page
    assert "def hyper(m, maps" in pages["gallery/mhc.md"]  # a helper of the oracle
    assert "× 2.79" in pages["gallery/mhc.md"]  # of docs/placements_speed.md
    assert "S**0.25)`" in pages["gallery/deepnorm.md"]


def test_reference_pages_are_complete():
    commands, connections = reference.commands(), reference.connections()
    for name in COMMANDS:
        assert f"## {name}\n" in commands
    assert "| `--temperature` |" in commands and "| `--dry_run` | `False` |" in commands
    assert all(f"| `{name}` |" in connections for name in SUPPORTS)
    fields = reference.config_fields()
    assert all(f"| `{name}` |" in fields for name in FIELDS)


def test_notebook_becomes_a_page():
    page = reference.notebook(ROOT / reference.NOTEBOOK)
    cells = json.loads((ROOT / reference.NOTEBOOK).read_text())["cells"]
    assert page.count("```python\n") == sum(cell["cell_type"] == "code" for cell in cells)
    assert page.startswith("# ")

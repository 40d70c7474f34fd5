"""The gallery: an index of all presets, and one page per preset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

from gpt2_jax.cli.placements import BASE, SEQ_LEN, architectures, counts
from gpt2_jax.placements.axes import Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.catalogue.norm_placement import NORM_PLACEMENT
from gpt2_jax.placements.catalogue.residual_scaling import RESIDUAL_SCALING
from gpt2_jax.placements.registry import SUPPORTS
from gpt2_jax.placements.resolve import differences, has_final_norm, specify
from gpt2_jax.placements.spec import ScaleSpec, TowerSpec
from gpt2_jax.placements.towers import decoder
from website.drawing import drawings
from website.equations import latex_lines, mathml
from website.oracles import BASE as ORACLE_BASE
from website.oracles import oracles

DEPTH = 12  # of GPT-2 124M, for drawings and counts
FAMILIES = {
    "Norm placement": "Positions and types of norms, and the arrangement of blocks.",
    "Residual scaling": "Weights of skip and branch: constants, learned factors, gates, initial "
    "values.",
    "Other skips": "Skips other than the identity.",
    "Several streams": "More than one residual stream.",
    "Across layers": "Earlier layers pass information to later ones outside the residual stream.",
}
SPEEDS = Path(__file__).parent.parent / "docs" / "placements_speed.md"
FACTORS = (("a", "skip_scale"), ("b", "branch_scale"), ("c", "input_scale"))


def family(name: str) -> str:
    """Returns the heading under which a preset is listed."""
    if name in NORM_PLACEMENT:
        return "Norm placement"
    if name in RESIDUAL_SCALING:
        return "Residual scaling"
    spec, supports = spec_of(name), SUPPORTS[PRESETS[name].connection]
    mixes_values = any(stack.block.values == "source" for stack in spec.stacks)
    if supports.shapes_by_depth or supports.depth_groups or spec.cross_layer or mixes_values:
        return "Across layers"
    return "Several streams" if supports.multi_stream or supports.n_streams else "Other skips"


def families() -> dict[str, list[str]]:
    """Returns the names of all presets by family."""
    out: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for name in PRESETS:
        out[family(name)].append(name)
    return out


@cache
def spec_of(name: str) -> TowerSpec:
    """Returns the typed spec of a preset at the depth of its drawing."""
    return specify(PRESETS[name], decoder(DEPTH))


def pages() -> Iterator[tuple[str, str]]:
    """Yields the path and the Markdown of each page."""
    yield "gallery/index.md", index()
    yield "gallery/oracles.md", oracle_page()
    for name in PRESETS:
        yield f"gallery/{name}.md", preset(name)


def index() -> str:
    """Returns the page that lists all presets."""
    rows = [
        "# Gallery of placements",
        "",
        f"{len(PRESETS)} published residual connections and norm placements, each a preset: "
        "`--config.placement.preset=NAME`. Each is tested against an "
        "[independent implementation](oracles.md) in float64. Its page has its equation, its "
        "differences from GPT-2, and its cost.",
    ]
    for title, names in families().items():
        rows += ["", f"## {title}", "", FAMILIES[title], "", '<div class="gallery">']
        rows += [_card(name) for name in names]
        rows.append("</div>")
    return "\n".join(rows) + "\n"


def _card(name: str) -> str:
    (_, svg), *_ = drawings(spec_of(name))
    text = escape(PRESETS[name].equation.replace("\n", "; "))
    return (
        f'<a href="{name}.html"><span class="name">{name}</span>'
        f'<span class="thumbnail">{svg}</span><span class="equation-text">{text}</span></a>'
    )


def preset(name: str) -> str:
    """Returns the page of one preset."""
    placement, oracle = PRESETS[name], oracles()[name]
    rows = [f"# {name}", "", f"*{family(name)}.* {cite(placement.citation)}", ""]
    rows += [equation(placement.equation), "", figures(name), *legend(spec_of(name)), ""]
    if placement.note:
        rows += [f"**Note:** {placement.note}.", ""]
    supported = ", ".join(f"`{name}`" for name in architectures(placement))
    rows += [f"**[Architectures](../guides/architectures.md):** {supported}.", ""]
    rows += [
        "## Use it",
        "",
        "```",
        f"gpt2-jax train --config=quickstart --workdir=runs/{name} \\",
        f"    --config.placement.preset={name}",
        "```",
        "",
        *axes_table(name, placement),
        "",
        "## Cost",
        "",
        *cost_table(name),
        "",
        "## Oracle",
        "",
        "A second implementation of the whole model, in numpy and float64, written from the "
        "equation alone. Logits agree to 1e-5 of their RMS. [Shared helpers](oracles.md).",
        "",
        f'```python title="{oracle.path}"',
        oracle.source,
        "```",
    ]
    return "\n".join(rows) + "\n"


def equation(text: str) -> str:
    """Returns an equation of the catalogue as display math."""
    lines = [mathml(line, display=True) for line in latex_lines(text)]
    return f'<div class="equation">{"".join(lines)}</div>'


def figures(name: str) -> str:
    """Returns the drawings of a preset's blocks."""
    made = [
        f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
        for caption, svg in drawings(spec_of(name))
    ]
    return f'<div class="blocks">{"".join(made)}</div>'


def legend(spec: TowerSpec) -> list[str]:
    """Returns a line with the values of the factors a, b and c that are not 1."""
    out: dict[str, None] = {}
    for stack in spec.stacks:
        for sublayer in stack.block.sublayers:
            for letter, axis in FACTORS:
                scale: ScaleSpec = getattr(sublayer, axis)
                if not scale.is_one:
                    out[f"*{letter}* = `{scale.first.text}`{_learned(scale)}"] = None
    return ["", f"Factors: {'; '.join(out)}."] if out else []


def _learned(scale: ScaleSpec) -> str:
    words = {
        "learned_scalar": " initially, learned, one per sublayer",
        "learned_block": " initially, learned, one per block",
        "learned_vector": " initially, learned, one per channel",
    }
    return words.get(scale.kind, "")


def axes_table(name: str, placement: Placement) -> list[str]:
    """Returns a table of the axes in which a preset differs from GPT-2's placement."""
    changed = differences(placement, PRESETS[BASE])
    if not changed:
        return ["All axes have the values of GPT-2."]
    rows = [
        "Differences from GPT-2 (each axis is also a field that overrides the preset's value):",
        "",
        f"| field | GPT-2 | {name} |",
        "|---|---|---|",
    ]
    for axis in changed:
        ours, theirs = (_cell(getattr(p, axis)) for p in (PRESETS[BASE], placement))
        rows.append(f"| `placement.{axis}` | {ours} | {theirs} |")
    return rows


def _cell(value: object) -> str:
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text else ""


def cost_table(name: str) -> list[str]:
    """Returns a table of parameters, FLOPs and step time compared with GPT-2's placement."""
    (params, flops), (base_params, base_flops) = counts(name), _base_counts()
    ends = has_final_norm(PRESETS[name], DEPTH)
    share = f"{flops / base_flops - 1:+.1%}".replace("-0.0", "+0.0")
    rows = [
        f"| | {name} | compared with {BASE} |",
        "|---|---|---|",
        f"| parameters at 124M | {params:,} | {params - base_params:+,} |",
        f"| training FLOPs per token at 124M* | {flops / 1e6:,.1f} M | {share} |",
    ]
    if name in speeds():
        step, ratio, compile_time = speeds()[name]
        rows.append(f"| step at the quickstart's size, two CPU cores | {step} ms | × {ratio} |")
        rows.append(f"| compile time of that step | {compile_time} s | |")
    rows.append(f"| norm after the last block | {'yes' if ends else 'no'} | |")
    note = (
        f"\\* 6 N + 12 L D T for {DEPTH} layers of width 768 and sequence length {SEQ_LEN}; N "
        "excludes position embeddings. [How the times were measured](../placements_speed.md)."
    )
    return [*rows, "", note]


@cache
def _base_counts() -> tuple[int, int]:
    return counts(BASE)


@cache
def speeds() -> dict[str, tuple[str, str, str]]:
    """Returns milliseconds per step, the ratio to pre_ln and compile seconds of each preset."""
    row = re.compile(r"\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| [\d,]+ \| ([\d.]+) \|")
    return {name: (ms, ratio, s) for name, ms, ratio, s in row.findall(SPEEDS.read_text())}


def cite(citation: str) -> str:
    """Returns a citation with links to arXiv and GitHub."""
    linked = re.sub(r"\b(\d{4}\.\d{5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", citation)
    return re.sub(r"(?<=; )([\w-]+/[\w.-]+)(?= |$)", r"[\1](https://github.com/\1)", linked) + (
        "" if linked.endswith(".") else "."
    )


def oracle_page() -> str:
    """Returns the page about oracles, with their shared helpers."""
    rows = [
        "# Oracles",
        "",
        "Every preset is implemented twice. The second implementation, its oracle, is a whole "
        "model in numpy and float64, written from the published equation without the package's "
        "scans, stacked parameters or typed specs. A test gives both the same weights, with noise "
        "on every parameter so that initial zeros and ones cannot hide a mistake, and compares the "
        "logits.",
        "",
        "All oracles share these helpers:",
        "",
        f'```python title="{ORACLE_BASE}"',
        (SPEEDS.parent.parent / ORACLE_BASE).read_text().rstrip(),
        "```",
    ]
    return "\n".join(rows) + "\n"

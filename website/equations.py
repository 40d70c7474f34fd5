r"""Equations of the catalogue as LaTeX, and LaTeX as MathML.

The catalogue writes equations as plain text, for terminals: `x' = x + F(N(x)), a_l initially 0`.
Words of two letters or more are English unless they name a function; everything else is math.
Browsers render MathML natively, so the site needs no external scripts or fonts.
"""

from __future__ import annotations

import re
from itertools import pairwise

from latex2mathml.converter import convert

OPERATORS = ("softmax", "silu", "relu", "gelu", "sg", "erf", "head", "heads", "Sinkhorn", "Var")
FUNCTIONS = {name: rf"\operatorname{{{name}}}" for name in OPERATORS} | {
    name: f"\\{name}" for name in ("tanh", "exp", "min", "sum", "sqrt")
}
SYMBOLS = {
    "<=": r"\le ",
    "<-": r"\leftarrow ",
    "..": r"\ldots ",
    "σ": r"\sigma ",
    "(.)": r"(\cdot)",
    "|.|": r"|\cdot|",
    "<": r"\langle ",
    ">": r"\rangle ",
    "-": "-",
    "!": "!",
}
TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<symbol><=|<-|\.\.|\(\.\)|\|\.\||[<>σ!-])
    |(?P<power>\^(?:-?\d+/\d+|-?\w+|\([^)]*\)))
    |(?P<number>\d+e-?\d+|\d+(?:\.\d+)?)
    |(?P<name>[A-Za-z]+(?:'s|\u0302)?(?:-[a-z]{2,})*)(?P<digit>\d*)
        (?P<index>_(?:\{[^}]*\}|\w+))?(?P<prime>'?)
    |(?P<below>_\w+)
    |(?P<plain>[-+=/()|,.:*'])""",
    re.VERBOSE,
)
# Text after a comma that continues the list before it: `j = 0, 1, 2` and `N(q), N(k)`.
CONTINUED = re.compile(r"\d|[A-Z]\([a-z]\)(?! =)")
PRIME = "<mrow><mi>&#x02032;</mi></mrow>"
MARK = '<mo lspace="0" rspace="0">&#x02032;</mo>'
LONGEST_LINE = 56  # characters of an equation that stays on one line


def latex_lines(equation: str) -> list[str]:
    """Returns an equation of the catalogue as lines of LaTeX.

    Raises:
      ValueError: naming the first character that cannot be converted.
    """
    return [to_latex(line) for line in split_lines(equation)]


def split_lines(equation: str) -> list[str]:
    """Returns the lines of an equation: its clauses, with long ones split at commas."""
    lines = []
    for clause in re.split(r"\n|;\s*", equation):
        if len(clause) <= LONGEST_LINE:
            lines.append(clause)
            continue
        parts = _split_commas(clause)
        groups = [parts[:1]]
        for before, part in pairwise(parts):
            new = (_is_equation(part) or _is_equation(before)) and not CONTINUED.match(part)
            groups = [*groups, [part]] if new else [*groups[:-1], [*groups[-1], part]]
        lines += [", ".join(group) for group in groups]
    return lines


def _split_commas(text: str) -> list[str]:
    """Splits text at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "(<{") - (character in ")>}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _is_equation(text: str) -> bool:
    return bool(re.search(r" = | <- ", text))


def to_latex(text: str) -> str:
    """Returns one line of an equation as LaTeX.

    Raises:
      ValueError: naming the first character that cannot be converted.
    """
    matches = list(_tokens(text))
    english = [_is_english(match) for match in matches]
    for i, match in enumerate(matches):
        if match["name"] == "a" and not match["index"] and not match["prime"]:
            before, after = english[i - 2 : i - 1], english[i + 2 : i + 3]
            previous = matches[i - 2]["name"] if i > 1 else None
            english[i] = after == [True] and (before == [True] or previous is not None)
    out, words, depth = "", "", 0
    for match, is_word in zip(matches, english, strict=True):
        if is_word or (words and match["space"]):
            words += match[0]
            continue
        depth += (match[0] in ("(", "<")) - (match[0] in (")", ">"))
        comma = r",\;" if match[0] == "," and depth == 0 else ""
        out += _text(words) + (comma or _math(match))
        words = ""
    return _spaced(_with_roots(out + _text(words)))


def _spaced(latex: str) -> str:
    """Removes spaces around words next to punctuation or at an end of the line."""
    latex = re.sub(r"(\\;|\s)+(?=[,)])|(?<=\()(\\;)+|^(\\;)+|(\\;)+$", "", latex.strip())
    return re.sub(r"\\;(\s*\\;)+", r"\\;", latex)


def _tokens(text: str) -> list[re.Match[str]]:
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at]!r} in {text!r} has no LaTeX")
        found.append(match)
        at = match.end()
    return found


def _is_english(match: re.Match[str]) -> bool:
    name, index = match["name"], match["index"] or ""
    if name is None or len(name.replace("\u0302", "")) == 1:
        return False
    if name in FUNCTIONS:
        return not index and match.string[match.end() : match.end() + 1] != "("
    return not index or index[1:].isalpha()  # `attention_residuals`


def _text(words: str) -> str:
    if not words:
        return ""
    return rf"\;\text{{{words.strip()}}}\;"


def _math(match: re.Match[str]) -> str:
    if match["space"]:
        return " "
    if match["symbol"]:
        return SYMBOLS[match["symbol"]]
    if match["power"]:
        return f"^{{{match['power'][1:].strip('()')}}}"
    if match["below"]:
        return f"_{{{match['below'][1:]}}}"
    if match["number"]:
        return re.sub(r"(?:1)?(\d*)e(-?\d+)", r"\g<1>10^{\g<2>}", match["number"])
    if match["name"] is None:
        return match["plain"]
    return _identifier(match)


def _identifier(match: re.Match[str]) -> str:
    name = match["name"]
    hat = name.endswith("\u0302")
    base = FUNCTIONS.get(name, name.removesuffix("\u0302"))
    if hat:
        base = rf"\hat{{{base}}}"
    index = (match["index"] or "")[1:].strip("{}") or match["digit"]
    if len(index) > 2 and index.isalpha():
        index = rf"\text{{{index}}}"
    prime = "^{\\prime}" if match["prime"] else ""
    whole = base + (f"_{{{index}}}" if index else "") + prime
    return whole + " " * whole.endswith(tuple(FUNCTIONS))


def _with_roots(latex: str) -> str:
    r"""Replaces `\sqrt (…)` by `\sqrt{…}`."""
    while (at := latex.find(r"\sqrt (")) >= 0:
        start, depth = at + len(r"\sqrt ("), 1
        end = start
        while depth:
            depth += (latex[end] == "(") - (latex[end] == ")")
            end += 1
        latex = f"{latex[:at]}\\sqrt{{{latex[start : end - 1]}}}{latex[end:]}"
    return latex


def mathml(latex: str, *, display: bool) -> str:
    """Returns LaTeX as a `math` element."""
    made = convert(latex, display="block" if display else "inline")
    # Fonts draw the prime raised; as a superscript it would be raised twice.
    sub = r"<msub>\1\2</msub>"
    made = re.sub(
        rf"<msubsup>(<mi>[^<]*</mi>)(<mrow>.*?</mrow>){PRIME}</msubsup>", sub + MARK, made
    )
    return re.sub(rf"<msup>(<mi>[^<]*</mi>){PRIME}</msup>", r"\1" + MARK, made)


def render_math(html: str) -> str:
    """Returns HTML with the formulas marked by arithmatex converted to MathML."""

    def replace(match: re.Match[str]) -> str:
        latex = match["latex"].strip()
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            latex = latex.replace(entity, character)
        inner = mathml(latex[2:-2], display=latex.startswith(r"\["))
        return f'<{match["tag"]} class="equation">{inner}</{match["tag"]}>'

    return re.sub(
        r'<(?P<tag>span|div) class="arithmatex">(?P<latex>.*?)</(?P=tag)>',
        replace,
        html,
        flags=re.DOTALL,
    )

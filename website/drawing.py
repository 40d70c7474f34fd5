"""Draws a block from its typed spec.

The residual stream runs from bottom to top. Each sublayer branches off to the right and rejoins the
stream.
"""

from __future__ import annotations

from itertools import groupby

from gpt2_jax.placements.spec import BlockSpec, ScaleSpec, SublayerSpec, TowerSpec
from website.canvas import BOX_HEIGHT, BOX_WIDTH, RADIUS, Canvas

TRUNK, BRANCH, RIGHT = 74, 172, 262  # x of the stream, of branches, and of inputs from the right
MEMORY = 18  # x of a second stream, or of outputs of earlier layers
COLUMNS = (BRANCH - 26, BRANCH + 78)  # of parallel branches
GAP = 13
NORMS = {
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
    "rmsnorm_plus_one": "RMSNorm, 1 + w",
    "rmsnorm_fixed": "RMSNorm, no gain",
    "scalenorm": "ScaleNorm",
    "l2": "unit length",
    "dyt": "DyT",
    "derf": "Derf",
}
# How a connection combines a sublayer's output with the stream, if not by a sum.
JOINS = {
    "gru": "GRU gate",
    "highway": "highway gate",
    "laurel_rw": "weighted sum",
    "laurel_lr": "sum + B A x",
    "slerp": "step on sphere",
    "ddl": "delta rule",
    "orthogonal": "add ⊥ part",
    "attention_residuals": "store",
}
BUNDLES = ("hyper_static", "hyper", "frac", "mhc", "mhc_lite")  # several streams, side by side
DUAL = ("residual_dual", "siamesenorm")  # a second stream that sums sublayer outputs
BY_DEPTH = ("attention_residuals", "muddformer")  # read the outputs of all earlier layers
INSIDE = {
    "qk": "N(q), N(k)",
    "qk_full": "N(q), N(k)",
    "qkv": "N(q), N(k), N(v)",
    "cosine": "cosine scores",
    "unit_qk": "unit q, k",
    "inner": "N inside",
}
FROM_EARLIER = {"x0": "x₀", "unet": "early x", "coordinates": "P(l)"}
ACTIVATIONS = {"swiglu": "SwiGLU", "relu2": "ReLU²"}
BORROWED = ("half", "learned", "first")  # attention uses values of block 1
LAYERS = {"attn": "Attention", "mlp": "MLP"}


def drawings(spec: TowerSpec) -> list[tuple[str, str]]:
    """Returns a caption and an SVG for each kind of block that a model has, in order."""
    kinds = [(block, list(stacks)) for block, stacks in groupby(spec.stacks, lambda s: s.block)]
    out = []
    for block, stacks in kinds:
        first, last = stacks[0].start + 1, stacks[-1].stop
        caption = f"blocks {first} to {last}" if last > first else f"block {first}"
        if len(kinds) == 1:
            shared = stacks[0].repeats > 1
            caption = "one block, applied L times" if shared else "each of L blocks"
        out.append((caption, draw(spec, block)))
    return out


def draw(spec: TowerSpec, block: BlockSpec) -> str:
    """Returns the SVG of one block."""
    drawing = BlockDrawing(spec, block)
    drawing.enter()
    if spec.connection.name.startswith("parallel"):
        drawing.parallel()
    else:
        for sublayer in block.sublayers:
            drawing.sublayer(sublayer)
    return drawing.finish()


class BlockDrawing(Canvas):
    """A drawing of a block, finished up to height `y` of the stream."""

    def __init__(self, spec: TowerSpec, block: BlockSpec):
        super().__init__()
        self.spec, self.block, self.name = spec, block, spec.connection.name
        self.bottom, self.y = 4.0, 26.0

    def enter(self) -> None:
        """Draws the contributions of earlier layers to the stream before the block."""
        self.trunk(self.bottom, self.y)
        for word in filter(FROM_EARLIER.get, self.spec.cross_layer):
            at = self.y + RADIUS
            self.line((MEMORY - 10, at), (TRUNK - RADIUS, at), arrow=True, dashed=True)
            self.text(MEMORY + 12, at + 9, FROM_EARLIER[word], "note")
            self.circle(TRUNK, at, "+")
            self.advance(2 * RADIUS)
        if self.name == "muddformer":
            self.from_memory("mix over depth")

    def sublayer(self, spec: SublayerSpec) -> None:
        """Draws a sublayer, from its input to the point where its output joins the stream."""
        if "stream" in spec.norm_sites:
            self.on_trunk(self.norm_name, "norm", 92)
        if self.name in BUNDLES:
            self.on_trunk("Σ aᵢ hᵢ", "connection", 76)
        if self.name == "attention_residuals":
            self.from_memory("attend to depth")
        reads = self.name in (*BUNDLES, "attention_residuals")  # the branch starts at that box
        fork = self.y - reads * (GAP + BOX_HEIGHT / 2)
        top = self.branch(spec, fork, BRANCH)
        self.skip(spec, self.y, top)
        if self.name == "siamesenorm":
            self.line((MEMORY, fork + 6), (BRANCH, fork + 6), dashed=True)
        if self.name == "b2t" and spec is self.block.sublayers[-1]:
            low = self.bottom + 8
            self.line((TRUNK, low), (MEMORY, low), (MEMORY, top), (TRUNK - RADIUS, top), arrow=True)
        self.join(top)
        if "post" in spec.norm_sites:
            self.on_trunk(self.norm_name, "norm", 92)

    def parallel(self) -> None:
        """Draws sublayers that read the same stream and are added to it together."""
        first = self.block.sublayers[0]
        if "stream" in first.norm_sites:
            self.on_trunk(self.norm_name, "norm", 92)
        fork = self.y
        at = self.shared_norm(fork) if self.name == "parallel_shared" else fork
        columns = list(zip(COLUMNS, self.block.sublayers, strict=True))
        tops = [self.branch(s, at, x, shared=at > fork, width=92) for x, s in columns]
        top = max(tops)
        for x, end in zip(COLUMNS, tops, strict=True):
            self.line((x, end), (x, top))
        self.line((COLUMNS[1], top), (TRUNK + RADIUS, top), arrow=True)
        self.skip(first, fork, top)
        self.circle(TRUNK, top, "+")
        self.y = top
        self.advance(RADIUS)
        if "post" in first.norm_sites:
            self.on_trunk(self.norm_name, "norm", 92)

    def shared_norm(self, fork: float) -> float:
        """Draws one norm before both branches, and returns the height at which they fork."""
        middle, low = sum(COLUMNS) / 2, fork + GAP
        at = low + BOX_HEIGHT + 8
        self.line((TRUNK, fork), (middle, fork), (middle, at))
        self.box(middle, low + BOX_HEIGHT / 2, self.norm_name, "norm")
        self.line((COLUMNS[0], at), (COLUMNS[1], at))
        return at

    def branch(
        self,
        spec: SublayerSpec,
        fork: float,
        x: float,
        *,
        shared: bool = False,
        width: float = BOX_WIDTH,
    ) -> float:
        """Draws a branch at column x, and returns the height of its end.

        Args:
          shared: whether the branch begins after a norm that all branches share.
        """
        y = fork + GAP
        self.line((x if shared else TRUNK, fork), (x, fork), (x, y))
        if "pre" in spec.norm_sites and not shared:
            y = self.on_branch(x, y, self.norm_name, "norm", width)
        y = self.scale(x, y, spec.input_scale, "c")
        y = self.draw_layer(spec, x, y, width)
        if "out" in spec.norm_sites:
            y = self.on_branch(x, y, self.norm_name, "norm", width)
        return self.scale(x, y, spec.branch_scale, "b")

    def draw_layer(self, spec: SublayerSpec, x: float, y: float, width: float) -> float:
        """Draws attention or the MLP, and returns the height of the branch after it."""
        notes = self.notes(spec)
        height = 30 + 13 * len(notes)
        self.layer(x, y, height, LAYERS[spec.name], notes, width)
        if spec.name == "attn" and self.block.values in BORROWED:
            middle, edge = y + height / 2, x + width / 2
            self.line((RIGHT, middle), (edge, middle), arrow=True, dashed=True)
            self.text(RIGHT - 12, middle + 9, "V₁", "note")
        self.line((x, y + height), (x, y + height + GAP))
        return y + height + GAP

    def on_branch(self, x: float, y: float, label: str, kind: str, width: float) -> float:
        """Draws a box on a branch, and returns the height of the branch after it."""
        self.box(x, y + BOX_HEIGHT / 2, label, kind, width)
        self.line((x, y + BOX_HEIGHT), (x, y + BOX_HEIGHT + GAP))
        return y + BOX_HEIGHT + GAP

    def scale(self, x: float, y: float, scale: ScaleSpec, letter: str) -> float:
        """Draws a factor on a branch unless it is 1, and returns the height after it."""
        if scale.is_one:
            return y
        self.circle(x, y + RADIUS, letter, scale_kind(scale))
        self.line((x, y + 2 * RADIUS), (x, y + 2 * RADIUS + GAP))
        return y + 2 * RADIUS + GAP

    def skip(self, spec: SublayerSpec, fork: float, top: float) -> None:
        """Draws the skip past a sublayer, with its norm and its scale."""
        scale, normed = spec.skip_scale, "skip" in spec.norm_sites
        nothing = scale.kind == "constant" and scale.first.constant == 0.0
        if nothing or self.name == "attention_residuals":
            return
        self.trunk(fork, top)
        middle = (fork + top) / 2
        if normed:
            self.box(TRUNK, middle - 16 * (not scale.is_one), "N", "norm", 32)
        if not scale.is_one:
            self.circle(TRUNK, middle + 16 * normed, "a", scale_kind(scale))

    def join(self, top: float) -> None:
        """Draws the point at height `top` where a sublayer's output joins the stream."""
        label = "mix, add" if self.name in BUNDLES else JOINS.get(self.name)
        edge = 46 if label else RADIUS
        self.line((BRANCH, top), (TRUNK + edge, top), arrow=True)
        if self.name == "laurel_pa":
            self.line((MEMORY, top), (TRUNK - RADIUS, top), arrow=True, dashed=True)
            self.text(MEMORY + 14, top + 9, "earlier x", "note")
        if self.name == "attention_residuals":
            self.line((TRUNK - edge, top), (MEMORY, top), arrow=True, dashed=True)
        if label:
            self.box(TRUNK, top, label, "connection", 2 * edge)
        else:
            self.circle(TRUNK, top, "+")
        self.y = top
        self.advance(BOX_HEIGHT / 2 if label else RADIUS)
        if self.name in DUAL:
            self.line((BRANCH, top), (BRANCH, self.y), (MEMORY + RADIUS, self.y), arrow=True)
            self.circle(MEMORY, self.y, "+")
            self.advance(0)
        if self.name == "gpas":
            self.on_trunk("− silu(g) sg(x)", "connection", 104)

    def finish(self) -> str:
        """Draws the end of the block, and returns the SVG."""
        if "dense" in self.spec.cross_layer:
            self.from_memory("Σ over depth")
        self.trunk(self.y, self.y + GAP, arrow=True)
        end = self.y + GAP
        if self.name in DUAL:
            self.line((MEMORY, self.bottom), (MEMORY, end), arrow=True, kind="stream")
            self.text(MEMORY, end + 8, "y", "note")
            self.text(TRUNK, end + 8, "x", "note")
        elif self.name in BY_DEPTH or "dense" in self.spec.cross_layer:
            self.line((MEMORY, self.bottom), (MEMORY, end), dashed=True)
        width = RIGHT + 8 if self.block.values in BORROWED else 236
        return self.svg(302 if self.name.startswith("parallel") else width, end + 16)

    @property
    def norm_name(self) -> str:
        """The label of a norm."""
        return NORMS.get(self.spec.norm.kind, self.spec.norm.kind)

    def notes(self, spec: SublayerSpec) -> list[str]:
        """Returns the special features of a layer, in a few words each."""
        notes = [note for site, note in INSIDE.items() if site in spec.norm_sites]
        if spec.name == "attn":
            own = self.spec.attention
            notes += ["shaped scores"] * own.shaped + ["no W_V, no W_O"] * own.identity_values
            return notes + ["scaled heads"] * own.head_scale
        activation = self.spec.mlp.activation
        return notes + [ACTIVATIONS.get(activation, activation)] * (activation != "gelu_new")

    def from_memory(self, label: str) -> None:
        """Draws a box on the stream that reads the outputs of earlier layers."""
        at = self.y + BOX_HEIGHT / 2
        self.line((MEMORY, at), (TRUNK - 46, at), arrow=True, dashed=True)
        self.on_trunk(label, "connection", 92)

    def on_trunk(self, label: str, kind: str, width: float) -> None:
        """Draws a box on the stream."""
        self.box(TRUNK, self.y + BOX_HEIGHT / 2, label, kind, width)
        self.advance(BOX_HEIGHT)

    def advance(self, height: float) -> None:
        """Moves past a shape on the stream, and draws the stream above it."""
        self.trunk(self.y + height, self.y + height + GAP)
        self.y += height + GAP

    def trunk(self, start: float, end: float, *, arrow: bool = False) -> None:
        """Draws a piece of the stream, or of all streams."""
        n = min(self.spec.connection.n_streams, 4) if self.name in BUNDLES else 1
        for i in range(n):
            x = TRUNK + 9 * (i - (n - 1) / 2)
            self.line((x, start), (x, end), arrow=arrow, kind="stream")


def scale_kind(scale: ScaleSpec) -> str:
    """Returns the CSS classes of a factor's circle."""
    return "scale" if scale.kind == "constant" else "scale learned"

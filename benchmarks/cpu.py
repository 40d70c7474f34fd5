"""Times a train step on a CPU, ours and nanoGPT's in PyTorch, in turn on the same machine.

    python -m benchmarks.throughput --suite=cpu --nanogpt=CHECKOUT --torch_python=PYTHON

For each size it starts six processes: ours with products of float32 and of bfloat16
(`model.matmul_dtype`), and nanoGPT's model eager and compiled, in float32 and with bfloat16
autocast. They take turns of a few steps, one at a time, and medians over all turns are printed:
of wall time, and of CPU time summed over cores, which other work on the machine changes less. A
step is the forward and backward pass, clipping and AdamW on a batch that is already in memory. Then
our step's matrix products are timed alone. You provide a checkout of nanoGPT and a Python with
torch; `--nanogpt` may be left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.turns import Times, medians, take_turns

ROOT = Path(__file__).parent.parent
VOCABULARY = 65  # characters of Tiny Shakespeare
PEER = """
import json, sys, time, torch
from contextlib import nullcontext
from model import GPT, GPTConfig

size, dtype, compiled = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] == "compiled"
torch.manual_seed(0)
shape = dict(n_layer=size["n_layer"], n_head=size["n_head"], n_embd=size["n_embd"])
model = GPT(GPTConfig(block_size=size["seq_len"], vocab_size=65, dropout=0.0, bias=True, **shape))
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
context = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()
model = torch.compile(model) if compiled else model
x, y = torch.randint(65, (2, size["batch_size"], size["seq_len"]))

def step():
    with context:
        loss = model(x, y)[1]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()

for _ in range(3):
    step()
print("ready", flush=True)
for line in sys.stdin:
    started = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
        step()
    ended = time.perf_counter(), time.process_time()
    print("ms", *((b - a) / int(line) * 1e3 for a, b in zip(started, ended)), flush=True)
"""


@dataclass(frozen=True)
class Size:
    """The shape of a model and a batch; `n_steps` are taken in a turn."""

    n_layer: int
    n_head: int
    n_embd: int
    seq_len: int
    batch_size: int
    n_steps: int


SIZES = {"4x128": Size(4, 4, 128, 64, 12, 20), "6x384": Size(6, 6, 384, 256, 8, 1)}
OURS = {"ours, float32": "float32", "ours, bfloat16 products": "bfloat16"}
PEERS = {
    f"nanoGPT {mode}, {name}": (dtype, mode)
    for dtype, name in (("float32", "float32"), ("bfloat16", "bfloat16 autocast"))
    for mode in ("eager", "compiled")
}


def serve(size: Size, dtype: str) -> None:
    """Trains our model, a few steps for each number on standard input."""
    from benchmarks.placements import batch, timed
    from gpt2_jax.config import Config, replace, resolve
    from gpt2_jax.train.compiled_step import compile_step
    from gpt2_jax.train.distributed.mesh import configure_devices
    from gpt2_jax.train.malloc import keep_freed_memory

    shape = {name: getattr(size, name) for name in ("n_layer", "n_head", "n_embd")}
    changes = {f"model.{name}": value for name, value in shape.items()}
    changes |= {"model.n_positions": size.seq_len, "data.seq_len": size.seq_len}
    changes |= {"model.matmul_dtype": dtype, "train.batch_size": size.batch_size}
    config = resolve(replace(Config(), changes), VOCABULARY)
    configure_devices(config.train, config.mesh)
    keep_freed_memory(config.model, config.data, config.train, config.mesh)
    program = compile_step(config)
    tokens = program.put(batch(config))
    state, _ = timed(program, program.start(batch(config)), tokens, 3)
    print("ready", flush=True)
    for line in sys.stdin:
        n, started = int(line), time.process_time()
        state, ms = timed(program, state, tokens, n)
        print("ms", ms, (time.process_time() - started) / n * 1e3, flush=True)


def serve_products(size: Size, dtype: str) -> None:
    """Computes the matrix products of a step, and nothing else, for each number of repeats."""
    import jax
    from jax.sharding import PartitionSpec

    from gpt2_jax.config.sections import MeshConfig, TrainConfig
    from gpt2_jax.nn.products import product
    from gpt2_jax.train.distributed.mesh import by_rows, configure_devices, make_mesh, row_axes

    train = TrainConfig(batch_size=size.batch_size)
    configure_devices(train, MeshConfig())
    mesh = make_mesh(train, MeshConfig())
    d, t, heads = size.n_embd, size.seq_len, size.n_head
    by_head = (size.batch_size, heads, t, d // heads)
    weights = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] * size.n_layer + [(d, 128)]
    equations = ["BTI,IO->BTO"] * len(weights)
    pairs = [((size.batch_size, t, n_in), (n_in, n_out)) for n_in, n_out in weights]
    equations += ["BHTK,BHSK->BHTS", "BHTS,BHSK->BHTK"] * size.n_layer
    pairs += [(by_head, by_head), ((*by_head[:3], t), by_head)] * size.n_layer

    def one(equation: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        if equation == "BTI,IO->BTO":
            equation, a = "NI,IO->NO", a.reshape(-1, a.shape[-1])
        y, pullback = jax.vjp(lambda a, b: product(equation, a, b, dtype), a, b)
        return tuple(x.reshape(-1)[:1] for x in (y, *pullback(y)))

    rows = PartitionSpec(row_axes(mesh))
    specs = [(rows, rows if len(b) == 4 else PartitionSpec()) for _, b in pairs]
    key = jax.random.key(0)
    arrays = [tuple(jax.random.normal(key, shape) for shape in pair) for pair in pairs]
    local = lambda arrays: [one(e, *pair) for e, pair in zip(equations, arrays, strict=True)]
    run = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=rows, check_vma=False)
    )
    everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
    placed = [
        (
            jax.device_put(a, by_rows(mesh)),
            jax.device_put(b, by_rows(mesh) if b.ndim == 4 else everywhere),
        )
        for a, b in arrays
    ]
    jax.block_until_ready(run(placed))
    print("ready", flush=True)
    for line in sys.stdin:
        n, started, cpu_started = int(line), time.perf_counter(), time.process_time()
        for _ in range(n):
            jax.block_until_ready(run(placed))
        seconds = time.perf_counter() - started, time.process_time() - cpu_started
        print("ms", *(x / n * 1e3 for x in seconds), flush=True)


def measure(size: Size, args: argparse.Namespace) -> dict[str, Times]:
    """Returns the medians of each program, which run in turn."""
    own = [sys.executable, "-m", "benchmarks.cpu", json.dumps(asdict(size))]
    commands = {name: ([*own, "step", dtype], ROOT) for name, dtype in OURS.items()}
    if args.nanogpt is not None:
        peer = [args.torch_python, "-c", PEER, json.dumps(asdict(size))]
        commands |= {name: ([*peer, *words], args.nanogpt) for name, words in PEERS.items()}
    for name, dtype in OURS.items():
        commands[f"products alone: {name}"] = ([*own, "products", dtype], ROOT)
    times, _ = take_turns(commands, args.rounds, size.n_steps)
    return {name: medians(found) for name, found in times.items()}


def show(name: str, medians: dict[str, Times]) -> None:
    """Prints a table of one size."""
    peers = [ms for peer, ms in medians.items() if peer in PEERS and PEERS[peer][0] == "float32"]
    print(f"\n| {name} | ms per step | CPU ms | of nanoGPT's faster float32 | products alone |")
    print("|---|---|---|---|---|")
    for program, ms in medians.items():
        if program.startswith("products"):
            continue
        ratios = [a / min(b) for a, b in zip(ms, zip(*peers, strict=True), strict=False)]
        ratio = ", ".join(f"{value:.2f}" for value in ratios)
        alone = medians.get(f"products alone: {program}")
        shares = [a / b for a, b in zip(alone, ms, strict=True)] if alone else []
        products = ", ".join(f"{share:.0%}" for share in shares)
        print(f"| {program} | {ms.wall:.1f} | {ms.cpu:.1f} | {ratio} | {products} |", flush=True)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(words)
    for name in args.sizes.split(","):
        show(name, measure(SIZES[name], args))


if __name__ == "__main__":  # a process that is timed
    size, work, dtype = sys.argv[1:]
    {"step": serve, "products": serve_products}[work](Size(**json.loads(size)), dtype)

"""Evaluates a run's model with EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.api.model
import lm_eval.api.task
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.model import TemplateLM
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from gpt2_jax.config import from_json
from gpt2_jax.config.task_rules import check_continues
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError, shortened, suggestion
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.likelihood import LogLikelihood, Request, Scorer
from gpt2_jax.evaluate.sampling import GREEDY, SamplingParams
from gpt2_jax.evaluate.task_data import LocalTask, local_folder, parts_of_blimp
from gpt2_jax.evaluate.text_generation import encode_prompts, generate_texts
from gpt2_jax.files import (
    ABANDONED_SECONDS,
    cache_dir,
    disk_errors,
    remove_temporary,
    write_json,
)
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.wandb_log import WandbLog
from gpt2_jax.train.report import wandb_config, wandb_options
from gpt2_jax.train.storage.open_run import OpenedRun, open_run
from gpt2_jax.train.storage.rundir import RunDirectory

DEFAULT_NEW_TOKENS = 256
BATCH_TEXTS = 16
SCORING = 2  # increment when scoring changes, to invalidate cached results


class HarnessModel(TemplateLM):
    """The harness's interface to a model: likelihoods, rolling likelihoods, and generated text."""

    def __init__(self, run: OpenedRun, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._window = run.config.data.seq_len
        self._tokenizer = tokenizer
        self._scorer = Scorer(run.model_def, run.params, run.step, self._window)
        end = tokenizer.end_of_text
        self._generator = Generator(run.model_def, run.params, run.step, self._window, end)

    @property
    def eot_token_id(self) -> int:
        """The token that replaces an empty context."""
        return self._tokenizer.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns ids; the tokenizers here add no special tokens."""
        del add_special_tokens, kwargs
        (ids,) = self._tokenizer.encode([string])
        return ids.tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a context and of a continuation.

        As in the harness's `hf` adapter, trailing spaces of the context belong to the continuation,
        and the whole text is encoded and then split after the ids of the context. If a token spans
        the boundary, the two parts are encoded separately.
        """
        whole_text = context + continuation
        context = context.rstrip()
        continuation = whole_text[len(context) :]
        whole, before = self.tok_encode(whole_text), self.tok_encode(context)
        if whole[: len(before)] == before and len(whole) > len(before):
            return before or [self.prefix_token_id], whole[len(before) :]
        return before or [self.prefix_token_id], self.tok_encode(continuation)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns each continuation's log-likelihood and whether greedy decoding produces it.

        Raises:
          UserError: if a continuation has no tokens, which would make it the most likely choice.
        """
        pairs = []
        for request in requests:
            context, continuation = request.args
            before, new = self._encode_pair(context, continuation)
            if context == "" and new[:1] == [self.prefix_token_id]:  # as the `hf` adapter does
                before, new = new[:1], new[1:]
            if not new:
                raise UserError(
                    f"--tasks: {request.task_name or 'a task'} asks for the likelihood of the "
                    f"continuation {continuation!r} after {context[-40:]!r}, which has no "
                    "tokens to score; leave the task out"
                )
            pairs.append((request.args, before, new))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        def cache(i: int, result: LogLikelihood) -> None:
            pair = (result.log_p, result.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i][0], pair)

        pairs = [(context, new) for _, context, new in requests]
        results = self._score(pairs, cache, "loglikelihood", disable_tqdm)
        return [(result.log_p, result.is_greedy) for result in results]

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        on_result: Callable[[int, LogLikelihood], None],
        label: str,
        disable_tqdm: bool,
    ) -> list[LogLikelihood]:
        asked = [Request(tuple(context), tuple(new)) for context, new in pairs]
        with tqdm(total=len(asked), desc=label, disable=disable_tqdm) as bar:

            def count(i: int, result: LogLikelihood) -> None:
                bar.update()
                on_result(i, result)

            return self._scorer.score(asked, count)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, in windows that do not overlap."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        totals, waiting = [0.0] * len(requests), [0] * len(requests)
        for owner, request in enumerate(requests):
            (string,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(string),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._window,
                context_len=1,
            ):
                context, new = make_disjoint_window(pair)
                windows.append((context, new))
                owners.append(owner)
                waiting[owner] += 1

        def add(i: int, result: LogLikelihood) -> None:
            owner = owners[i]
            totals[owner] += result.log_p
            waiting[owner] -= 1
            if waiting[owner] == 0:
                entry = ("loglikelihood_rolling", requests[owner].args, totals[owner])
                self.cache_hook.add_partial(*entry)

        self._score(windows, add, "loglikelihood_rolling", disable_tqdm)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the text after each context, up to a stop string or the requested length."""
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for options, indices in groups.items():
                indices.sort(key=lambda i: len(requests[i].args[0]))
                for start in range(0, len(indices), BATCH_TEXTS):
                    batch = indices[start : start + BATCH_TEXTS]
                    contexts = [requests[i].args[0] for i in batch]
                    for i, text in zip(
                        batch, self._generate(contexts, json.loads(options)), strict=True
                    ):
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(batch))
        return [texts[i] for i in range(len(requests))]

    def _generate(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        stops = options.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        n_new = int(options.get("max_gen_toks") or options.get("max_tokens") or DEFAULT_NEW_TOKENS)
        sampling = GREEDY
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            sampling = SamplingParams(
                options.get("repetition_penalty", 1.0),
                options.get("temperature", 1.0),
                options.get("top_k", 0),
                options.get("top_p", 1.0),
            )
        n_context = self._window - n_new
        ids = encode_prompts(self._tokenizer, contexts)
        prompts = [prompt[-n_context:] if n_context > 0 else prompt for prompt in ids]
        return generate_texts(
            self._generator, self._tokenizer, prompts, n_new, sampling, stops=stops
        )


def evaluate_tasks(
    workdir: str,
    names: Sequence[str],
    step: int | str | None = None,
    task_data: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Returns the harness's results, and writes them to the run directory as JSON.

    Args:
      names: tasks or groups by the harness's names.
      task_data: folder of local files with the tasks' data; None to use the hub.
      limit: number of documents per task; None for all of them.

    Raises:
      UserError: if there is no such run or task, or its data is missing.
    """
    # The harness's bootstrap forks, which is unsafe in a process with jax's threads.
    os.environ["DISABLE_MULTIPROC"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    tasks = _tasks(manager, names, task_data)
    run = open_run(workdir, step, devices=1)
    check_continues(run.config.task, workdir)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    model = HarnessModel(run, tokenizer)
    with _without_task_bars():
        found = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            use_cache=str(_cache_path(run, tokenizer)),
            log_samples=False,
            bootstrap_iters=1000,
        )
    results = {"step": run.step, "asked": list(names), "limit": limit, **_results_of(found)}
    _store(Path(workdir) / "evals", results)
    _summarize(run.model_def, RunDirectory(workdir), results)
    return results


def _results_of(found: Any) -> dict[str, Any]:
    return {
        "results": found["results"],
        "groups": found.get("groups", {}),
        "versions": found["versions"],
        "n_documents": {name: n["effective"] for name, n in found["n-samples"].items()},
    }


def _store(folder: Path, results: dict[str, Any]) -> None:
    label = "-".join(results["asked"])[:80].replace("/", "_")
    first = f"-first{results['limit']}" if results["limit"] else ""
    with disk_errors("evals/"):
        folder.mkdir(exist_ok=True)
        remove_temporary(folder, time.time() - ABANDONED_SECONDS)
        write_json(folder / f"{label}-{results['step']}{first}.json", results)


def _cache_path(run: OpenedRun, tokenizer: Tokenizer) -> Path:
    """Returns where the harness caches the results of a checkpoint and its tokenizer.

    This is outside the run directory, which may come from an untrusted source: the harness
    unpickles its cache.
    """
    facts = f"{SCORING} {run.sums} {tokenizer.fingerprint}"
    return cache_dir() / "answers" / hashlib.sha256(facts.encode()).hexdigest()[:32]


@contextmanager
def _without_task_bars() -> Iterator[None]:
    """Disables the harness's progress bar per task."""
    modules = (lm_eval.api.task, lm_eval.api.model)
    kept = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        for module, bar in zip(modules, kept, strict=True):
            module.tqdm = bar


def _summarize(model_def: ModelDef, directory: RunDirectory, results: dict[str, Any]) -> None:
    """Adds the metrics to the run's summary on wandb, as `eval/<task>/<metric>`.

    The config is sent again in full, because it replaces the one on the server.
    """
    config = from_json(directory.config_path)
    log = WandbLog(
        wandb_options(config, directory),
        wandb_config(config, directory, model_def),
        read_rows(directory.metrics_path),
        lambda line: print(line, file=sys.stderr),
    )
    log.summarize({f"eval/{task}/{metric}": value for task, metric, value, _ in rows(results)})
    log.close(0)


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """Yields task, metric (with its filter), value and standard error.

    Subtasks of a group are included only if they were requested by name.
    """
    for name, values in results["results"].items():
        is_subtask = any(name.startswith(f"{group}_") for group in results["groups"])
        if is_subtask and name not in results["asked"]:
            continue
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = values.get(f"{metric}_stderr,{kind}")
                shown = metric if kind == "none" else f"{metric}/{kind}"
                yield name, shown, float(value), error if isinstance(error, float) else None


def _tasks(manager: TaskManager, names: Sequence[str], task_data: str | None) -> list[Any]:
    known = set(manager.all_tasks)
    if duplicates := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"--tasks has {duplicates[0]} twice; remove one")
    for name in names:
        if name not in known:
            near = suggestion(name, known)
            hint = near if "did you mean" in near else "; see `lm_eval ls tasks`"
            raise UserError(f"--tasks: {name} is not a task of lm-evaluation-harness{hint}")
    return [task for name in names for task in _load(manager, name, task_data)]


def _load(manager: TaskManager, name: str, task_data: str | None) -> list[Any]:
    """Loads a task, a group, or the tasks of a tag, with their data."""
    try:
        if task_data is not None:
            return [_local_task(manager, name, Path(task_data))]
        loaded = manager.load([name])
    except UserError:
        raise
    except Exception as error:  # data sources and task code raise exceptions of any kind
        reason = shortened(error)
        if task_data is not None:
            raise UserError(
                f"--task_data={task_data} does not contain the data of {name} "
                f"({type(error).__name__}: {reason})"
            ) from None
        raise UserError(
            f"--tasks: {name} cannot be loaded ({type(error).__name__}: {reason}); check the "
            "network, and install what the task needs"
        ) from None
    if name in loaded["groups"]:
        return [loaded["groups"][name]]
    return [loaded["tasks"][name]] if name in loaded["tasks"] else list(loaded["tasks"].values())


def _local_task(manager: TaskManager, name: str, task_data: Path) -> Any:
    """Returns the harness's own task or group, but with local data.

    The harness allows changing the data of registered tasks only within an inline group.
    """
    local = LocalTask.of(name)
    folder = local_folder(local, task_data)
    wanted = parts_of_blimp(folder) if name == "blimp" else [name]
    if name.startswith("blimp_") and name not in parts_of_blimp(folder):
        raise UserError(f"--task_data={task_data} has no data for {name}")
    changes = {"dataset_path": str(folder), **dict.fromkeys(local.absent)}
    members = [{"task": task, **changes} for task in wanted]
    tasks = manager.load({"group": "local", "task": members})["tasks"]
    if name != "blimp":
        return tasks[name]
    mean = {"metric": "acc", "weight_by_size": False}
    group = Group.from_config(GroupConfig(group=name, task=wanted, aggregate_metric_list=[mean]))
    for task in tasks.values():
        group.add(task)
    return group


def table(results: dict[str, Any]) -> str:
    """Returns the metrics with their standard errors, one per line."""
    lines = [f"{'task':<24} {'metric':<16} {'value':>12}   {'± stderr':<12} documents"]
    for name, metric, value, error in rows(results):
        shown = "" if error is None else f"± {error:.4g}"
        n = results["n_documents"].get(name, "")
        lines.append(f"{name:<24} {metric:<16} {value:>12,.4f}   {shown:<12} {n}".rstrip())
    return "\n".join(lines)

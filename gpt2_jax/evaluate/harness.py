"""EleutherAI's lm-evaluation-harness over a run's model."""

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

from gpt2_jax import config as configs
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.evaluate.choice import GREEDY, Choice
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.likelihood import Answer, Request, Scorer
from gpt2_jax.evaluate.task_data import LocalTask, local_folder, parts_of_blimp
from gpt2_jax.evaluate.writing import encode_prompts, write
from gpt2_jax.files import (
    ABANDONED_SECONDS,
    cache_dir,
    disk_errors,
    remove_temporary,
    write_json,
)
from gpt2_jax.model.structure import Structure
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.track.wandb_log import WandbLog
from gpt2_jax.train.report import wandb_config, wandb_options
from gpt2_jax.train.restore import OpenedRun, open_run
from gpt2_jax.train.rundir import RunDirectory

USUAL_NEW_TOKENS = 256
TEXTS_AT_ONCE = 16
SCORING = 2  # raised when scoring changes, so that answers kept before are not taken for new ones


class HarnessModel(TemplateLM):
    """A model as the harness asks it: likelihoods, rolling likelihoods, and texts."""

    def __init__(self, run: OpenedRun, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._window = run.config.data.seq_len
        self._tokenizer = tokenizer
        self._scorer = Scorer(run.structure, run.params, run.step, self._window)
        end = tokenizer.end_of_text
        self._generator = Generator(run.structure, run.params, run.step, self._window, end)

    @property
    def eot_token_id(self) -> int:
        """The token that an empty context is."""
        return self._tokenizer.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns ids; our tokenizers add no special tokens."""
        del add_special_tokens, kwargs
        (ids,) = self._tokenizer.encode([string])
        return ids.tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a context and of a continuation.

        As in the harness's `hf` adapter, spaces at the end of the context belong to the
        continuation, and the ids are those of the whole text, split after the context's own.
        Where the two merge into one token there is no such split: each is encoded by itself.
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
          UserError: if a continuation has no tokens: as a choice it would always win.
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
                    f"empty continuation {continuation!r} after {context[-40:]!r}; nothing can be "
                    "scored: leave the task out"
                )
            pairs.append((request.args, before, new))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        def said(i: int, answer: Answer) -> None:
            given = (answer.log_p, answer.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i][0], given)

        pairs = [(context, new) for _, context, new in requests]
        answers = self._score(pairs, said, "loglikelihood", disable_tqdm)
        return [(answer.log_p, answer.is_greedy) for answer in answers]

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        said: Callable[[int, Answer], None],
        what: str,
        disable_tqdm: bool,
    ) -> list[Answer]:
        asked = [Request(tuple(context), tuple(new)) for context, new in pairs]
        with tqdm(total=len(asked), desc=what, disable=disable_tqdm) as bar:

            def counted(i: int, answer: Answer) -> None:
                bar.update()
                said(i, answer)

            return self._scorer.score(asked, counted)

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

        def said(i: int, answer: Answer) -> None:
            owner = owners[i]
            totals[owner] += answer.log_p
            waiting[owner] -= 1
            if waiting[owner] == 0:
                kept = ("loglikelihood_rolling", requests[owner].args, totals[owner])
                self.cache_hook.add_partial(*kept)

        self._score(windows, said, "loglikelihood_rolling", disable_tqdm)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the text after each context, up to a stop string or the asked length."""
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for how, indices in groups.items():
                indices.sort(key=lambda i: len(requests[i].args[0]))
                for start in range(0, len(indices), TEXTS_AT_ONCE):
                    some = indices[start : start + TEXTS_AT_ONCE]
                    contexts = [requests[i].args[0] for i in some]
                    for i, text in zip(some, self._write(contexts, json.loads(how)), strict=True):
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(some))
        return [texts[i] for i in range(len(requests))]

    def _write(self, contexts: list[str], how: dict[str, Any]) -> list[str]:
        stops = how.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        n_new = int(how.get("max_gen_toks") or how.get("max_tokens") or USUAL_NEW_TOKENS)
        choice = GREEDY
        if how.get("do_sample") and how.get("temperature", 1.0) > 0:
            choice = Choice(
                how.get("repetition_penalty", 1.0),
                how.get("temperature", 1.0),
                how.get("top_k", 0),
                how.get("top_p", 1.0),
            )
        room = self._window - n_new
        ids = encode_prompts(self._tokenizer, contexts)
        kept = [one[-room:] if room > 0 else one for one in ids]
        return write(self._generator, self._tokenizer, kept, n_new, choice, stops=stops)


def evaluate_tasks(
    workdir: str,
    names: Sequence[str],
    step: int | str | None = None,
    task_data: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Returns the harness's results, and leaves them in the run directory as JSON.

    Args:
      names: tasks or groups by the harness's names.
      task_data: folder of local files to take the tasks' data from; None for the hub's.
      limit: documents of each task; None for all of them.

    Raises:
      UserError: if there is no such run or task, or its data are not there.
    """
    # Its bootstrap forks, which a process with jax's threads must not.
    os.environ["DISABLE_MULTIPROC"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    tasks = _tasks(manager, names, task_data)
    run = open_run(workdir, step, devices=1)
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    model = HarnessModel(run, tokenizer)
    with _only_our_bars():
        found = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            use_cache=str(_answers(run, tokenizer)),
            log_samples=False,
            bootstrap_iters=1000,
        )
    results = {"step": run.step, "asked": list(names), "limit": limit, **_kept(found)}
    _store(Path(workdir) / "evals", results)
    _summarize(run.structure, RunDirectory(workdir), results)
    return results


def _kept(found: Any) -> dict[str, Any]:
    """Returns what of the harness's report is a result, and not how it was come by."""
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


def _answers(run: OpenedRun, tokenizer: Tokenizer) -> Path:
    """Returns where the harness keeps the answers of a checkpoint and its tokenizer.

    Not in the run directory: it unpickles them, and that directory may be somebody else's.
    """
    facts = f"{SCORING} {run.sums} {tokenizer.fingerprint}"
    return cache_dir() / "answers" / hashlib.sha256(facts.encode()).hexdigest()[:32]


@contextmanager
def _only_our_bars() -> Iterator[None]:
    """Leaves out the harness's progress bars, one for each of hundreds of tasks."""
    modules = (lm_eval.api.task, lm_eval.api.model)
    kept = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        for module, bar in zip(modules, kept, strict=True):
            module.tqdm = bar


def _summarize(structure: Structure, directory: RunDirectory, results: dict[str, Any]) -> None:
    """Adds the metrics to the summary of the run on wandb, as `eval/<task>/<metric>`.

    The config sent there is the one that training sent: it replaces what the server has.
    """
    config = configs.from_json(directory.config_path)
    log = WandbLog(
        wandb_options(config, directory),
        wandb_config(config, directory, structure),
        read_rows(directory.metrics_path),
        lambda line: print(line, file=sys.stderr),
    )
    log.summarize({f"eval/{task}/{metric}": value for task, metric, value, _ in rows(results)})
    log.close(0)


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """Yields task, metric (with its filter), value and standard error.

    Of a group's parts only those that were asked for by name.
    """
    for name, values in results["results"].items():
        part = any(name.startswith(f"{group}_") for group in results["groups"])
        if part and name not in results["asked"]:
            continue
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = values.get(f"{metric}_stderr,{kind}")
                shown = metric if kind == "none" else f"{metric}/{kind}"
                yield name, shown, float(value), error if isinstance(error, float) else None


def _tasks(manager: TaskManager, names: Sequence[str], task_data: str | None) -> list[Any]:
    known = set(manager.all_tasks)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"--tasks has {twice[0]} twice")
    for name in names:
        if name not in known:
            near = suggestion(name, known)
            hint = near if "did you mean" in near else "; see `lm_eval ls tasks`"
            raise UserError(f"--tasks: {name} is no task of the harness{hint}")
    return [task for name in names for task in _load(manager, name, task_data)]


def _load(manager: TaskManager, name: str, task_data: str | None) -> list[Any]:
    """Returns a task, a group, or what a tag stands for, with their data."""
    try:
        if task_data is not None:
            return [_local_task(manager, name, Path(task_data))]
        loaded = manager.load([name])
    except UserError:
        raise
    except Exception as error:  # each source of data, and each task's code, has its own
        reason = " ".join(str(error).split())[:200]
        if task_data is not None:
            raise UserError(
                f"--task_data={task_data} does not hold what {name} needs "
                f"({type(error).__name__}: {reason})"
            ) from None
        raise UserError(
            f"--tasks: {name} cannot be had ({type(error).__name__}: {reason}); is there a "
            "network, and what the task itself needs?"
        ) from None
    if name in loaded["groups"]:
        return [loaded["groups"][name]]
    return [loaded["tasks"][name]] if name in loaded["tasks"] else list(loaded["tasks"].values())


def _local_task(manager: TaskManager, name: str, task_data: Path) -> Any:
    """Returns the harness's own task or group, reading local data.

    Registered tasks take other data only as members of a group that is written out here.
    """
    local = LocalTask.of(name)
    folder = local_folder(local, task_data)
    wanted = parts_of_blimp(folder) if name == "blimp" else [name]
    if name.startswith("blimp_") and name not in parts_of_blimp(folder):
        raise UserError(f"--task_data={task_data} has no data for {name}")
    changes = {"dataset_path": str(folder), **dict.fromkeys(local.absent)}
    members = [{"task": task, **changes} for task in wanted]
    tasks = manager.load({"group": "given", "task": members})["tasks"]
    if name != "blimp":
        return tasks[name]
    mean = {"metric": "acc", "weight_by_size": False}
    group = Group.from_config(GroupConfig(group=name, task=wanted, aggregate_metric_list=[mean]))
    for task in tasks.values():
        group.add(task)
    return group


def table(results: dict[str, Any]) -> str:
    """Returns the metrics with their standard errors, one a line."""
    lines = [f"{'task':<24} {'metric':<16} {'value':>12}   {'± stderr':<12} documents"]
    for name, metric, value, error in rows(results):
        shown = "" if error is None else f"± {error:.4g}"
        n = results["n_documents"].get(name, "")
        lines.append(f"{name:<24} {metric:<16} {value:>12,.4f}   {shown:<12} {n}".rstrip())
    return "\n".join(lines)

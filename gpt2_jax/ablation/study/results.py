"""results.json: the results of a study, without times, so that it is bitwise reproducible."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2_jax.ablation.study.design import describe
from gpt2_jax.ablation.study.formats import VERSION, read_stored
from gpt2_jax.ablation.study.outcomes import Outcome
from gpt2_jax.ablation.study.plan import Plan, is_done, known_trials
from gpt2_jax.ablation.study.store import TrialStore
from gpt2_jax.ablation.study.trials import Trial
from gpt2_jax.config import from_json
from gpt2_jax.errors import Damaged, UserError, counted
from gpt2_jax.files import disk_errors, sha256, to_json, write_json
from gpt2_jax.track.metrics import read_rows
from gpt2_jax.train.storage.rundir import RunDirectory

RESULTS = "results.json"
CORPUS_FIELDS = ("source", "val_source", "val_fraction", "tokenizer")


def collect(plan: Plan, store: TrialStore) -> dict[str, Any]:
    """Returns the results so far, in the format of results.json."""
    known, outcomes = known_trials(plan, store)
    study, variants = plan.study, list[dict[str, Any]]()
    own = study.names or [None] * len(study.variants)
    name_of = lambda values: own[study.variants.index(values)] or describe(values)
    for i, values in enumerate(study.variants):
        state = plan.search_state(i, outcomes)
        variants.append(
            {
                "name": name_of(values),
                "values": values,
                "baseline": name_of(study.baseline_of(values)),
                "learning_rate": _learning_rate(plan, state.best),
                "settled": state.settled,
                "contenders": [_learning_rate(plan, k) for k in state.contenders],
                "unresolved": list(state.unresolved),
                "scores": [
                    {
                        "learning_rate": _learning_rate(plan, k),
                        "loss": score if math.isfinite(score) else None,
                    }
                    for k, score in sorted(state.scores.items())
                ],
            }
        )
    trials = [_of_trial(trial, outcomes.get(trial.name), store) for trial in known]
    all_done = all(is_done(trial, outcomes) for trial in known)
    return {
        "format_version": VERSION,
        "complete": all_done and all(v["settled"] for v in variants),
        "smallest_difference": study.smallest_difference,
        "corpora": corpora(store.path(trial.name) for trial in known),
        "variants": variants,
        "trials": trials,
    }


def corpora(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns the texts that runs were trained on: their sources and the hashes of their tokens."""
    found: dict[str, dict[str, Any]] = {}
    for path in runs:
        directory = RunDirectory(str(path))
        digest = directory.read_info().get("corpus")
        if isinstance(digest, str) and digest not in found and directory.config_path.exists():
            data = from_json(directory.config_path).data
            fields = {name: getattr(data, name) for name in CORPUS_FIELDS}
            found[digest] = {"sha256": digest, **fields}
    return list(found.values())


def _learning_rate(plan: Plan, k: int | None) -> float | None:
    search = plan.study.search
    return None if search is None or k is None else search.learning_rate(k)


def _of_trial(trial: Trial, outcome: Outcome | None, store: TrialStore) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": trial.name,
        "variant": trial.variant,
        "purpose": trial.purpose,
        "values": dict(trial.values),
        "status": "missing",
    }
    if outcome is None or not outcome.is_final:
        return found
    found |= {k: v for k, v in asdict(outcome).items() if k != "attempts"}
    path = store.path(trial.name) / "metrics.jsonl"
    rows = read_rows(path) if outcome.status == "failed" else store.rows(trial.name)
    found["curve"] = [[row["step"], row["val/loss"]] for row in rows if "val/loss" in row]
    return found


def write_results(workdir: Path, plan: Plan, store: TrialStore) -> str | None:
    """Writes results.json if the results have changed, but never replaces more complete ones.

    An existing file that is damaged or has different losses is kept under another name.

    Returns:
      A warning if the existing file has results that the directory lacks.
    """
    path, found = workdir / RESULTS, json.loads(to_json(collect(plan, store)))
    with disk_errors(RESULTS):
        if path.exists():
            try:
                old = read_stored(path)
                if old == found:
                    return None
                if lost := _lost(old, found):
                    return (
                        f"{path} was left unchanged: it has {counted(len(lost), 'trial')} whose "
                        f"outcome {workdir} no longer has, such as {lost[0]}"
                    )
                is_kept = _changed(old, found)
            except (Damaged, KeyError, TypeError, AttributeError):
                is_kept = True
            if is_kept:
                path.rename(path.with_name(f"results.old-{sha256(path)[:8]}.json"))
        write_json(path, found)
    return None


def read_results(path: Path) -> dict[str, Any]:
    """Returns the fields of a results.json.

    Raises:
      UserError: if it is not one, or was written by another version.
    """
    stored = read_stored(path)
    if not {"variants", "trials"} <= stored.keys():
        raise UserError(f"{path} is not the results.json of a study")
    return stored


def _final(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in results["trials"] if t["status"] in ("finished", "diverged")}


def _lost(old: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Returns the trials whose outcome, or part of whose curve, is missing from the new results.

    Trials that the study no longer has do not count.
    """
    known = {trial["name"] for trial in found["trials"]}
    new = _final(found)
    return [
        name
        for name, trial in _final(old).items()
        if name in known and (name not in new or len(new[name]["curve"]) < len(trial["curve"]))
    ]


def _changed(old: dict[str, Any], found: dict[str, Any]) -> bool:
    compared = ("status", "step", "loss", "initial_loss", "unigram_loss", "curve")
    new = _final(found)
    return any(
        trial.get(field) != new[name][field]
        for name, trial in _final(old).items()
        if name in new
        for field in compared
    )

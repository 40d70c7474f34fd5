"""Scores as JSON and as text."""

import json
from dataclasses import replace

import numpy as np

from gpt2_jax.files import to_json
from gpt2_jax.intervals import Interval
from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.result import Scores, Table

SCORES = Scores(
    kind="entities",
    unit="sentences",
    n=1287,
    values={"f1": Interval(0.5, 0.4, 0.61), "rare": Interval(np.nan, np.nan, np.nan)},
    definitions={"f1": "2PR/(P+R)"},
    bootstrap=Bootstrap(resamples=500, seed=3),
    tables=(
        Table("by type", ("type", "f1", "gold"), (("creative-work", 0.25, 7), ("x", None, 0))),
    ),
)
TEXT = """\
entities: 1,287 sentences, 95% bootstrap intervals over sentences
  f1    0.5000  0.4000 to 0.6100
  rare       -

by type
  type               f1  gold
  creative-work  0.2500     7
  x                   -     0

definitions
  f1  2PR/(P+R)"""


def test_text():
    assert SCORES.text() == TEXT


def test_json():
    read = json.loads(to_json(SCORES.to_json()))
    assert read["values"] == {
        "f1": {"estimate": 0.5, "low": 0.4, "high": 0.61},
        "rare": {"estimate": None, "low": None, "high": None},
    }
    assert read["interval"] == {
        "method": "percentile bootstrap",
        "level": 0.95,
        "resamples": 500,
        "seed": 3,
    }
    assert read["tables"][0]["rows"] == [["creative-work", 0.25, 7], ["x", None, 0]]
    assert (read["kind"], read["unit"], read["n"]) == ("entities", "sentences", 1287)


def test_metrics():
    assert SCORES.metrics("test/")["test/f1"] == 0.5


def test_text_without_intervals():
    values = {"f1": Interval(0.5, np.nan, np.nan)}
    text = replace(SCORES, values=values, bootstrap=Bootstrap(0), tables=()).text()
    assert text.splitlines()[:3] == ["entities: 1,287 sentences", "  f1  0.5000", ""]

"""The sections `task`, `head`, `data` and `eval`: what is predicted, from what, and its scores."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.fields import count, setting, share

TASKS = {
    "lm": "next tokens of text",
    "mlm": "masked tokens of text",
    "translate": "a target sequence for a source, such as a translation or a summary",
    "tag": "a tag per word, such as named entities",
    "classify": "a label per text",
    "answer": "the part of a text that answers a question, or has a label",
    "sft": "the completions of prompts, or the assistant's part of conversations",
}
LOSS = "loss"
SCORES = (  # `val/*` fields of metrics.jsonl that `train.best_by` may name
    *(LOSS, "accuracy", "macro_f1", "in_scope_accuracy", "entity_f1_strict", "entity_f1_lenient"),
    *("exact_match", "answer_f1", "span_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL"),
)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the model predicts."""

    name: str = setting(
        "lm",
        "; ".join(f"`{name}`: {meaning}" for name, meaning in TASKS.items()),
        choices=TASKS.keys(),
    )
    class_weights: tuple[str, ...] = setting(
        (),
        "with `classify` and `tag`: loss weights of labels, `LABEL=WEIGHT`, or `balanced`: inverse "
        "to their number of training examples",
    )
    mask_share: float = setting(
        0.15, "with `mlm`: share of the tokens that are predicted", above=0, below=1
    )
    whole_words: bool = setting(False, "with `mlm`: choose whole words instead of tokens")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The head of a fine-tuning task; the task chooses its kind."""

    pool: str = setting(
        "cls",
        "what a label of a whole sequence is read from: its first token (`cls`), or the mean over "
        "its tokens",
        choices=("cls", "mean"),
    )
    transform: bool | None = setting(
        None,
        "a dense layer before the output matrix: for masked tokens with the MLP's activation and a "
        "norm, for labels of sequences with tanh; unset: yes, unless `pool=mean`",
    )
    n_labels: int | None = count(
        None, "labels that are predicted; unset: those of the training data", maximum=2**20
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data, validation data and tokenizer."""

    source: str = setting(
        "stdlib",
        "`shakespeare`, `stdlib`, a path or glob of text files, a prepared folder, "
        "`hf:name[:config]@split`, a glob of .bin files, a URL or glob of remote files such as "
        "`s3://bucket/*.jsonl`, or several of them with weights: "
        "`mixture:SOURCE=WEIGHT,SOURCE=WEIGHT`",
        path=True,
    )
    val_source: str | None = setting(
        None, "separate validation data; unset: held out from `source`", path=True
    )
    test_source: str | None = setting(
        None,
        "test data of a task, which `gpt2-jax eval` scores; unset: the validation data",
        path=True,
    )
    columns: str | None = setting(
        None,
        "columns of a task's files, `NAME=COLUMN,NAME=COLUMN`: a name, a number from 0, or a path "
        "in JSON; unset: the names in the task's guide",
        longest=1000,
    )
    tag_scheme: str = setting(
        "iob2", "of tags in the files; models always predict iob2", choices=("iob1", "iob2")
    )
    tokenizer: str = setting(
        "bytes",
        "`bytes`, `gpt2`, the path of a tokenizer.json, `ids:N` for text of decimal ids below N, "
        "or `bpe:N` or `wordpiece:N`, trained on the training data",
        path=True,
    )
    chat_template: str | None = setting(
        None,
        "with `task.name=sft`: Jinja template of conversations; unset: the tokenizer's",
        path=True,
    )
    seq_len: int = count(1024, "tokens per sequence, at most `model.n_positions`", maximum=2**24)
    source_len: int | None = count(
        None, "with `task.name=translate`: tokens per source; unset: `seq_len`", maximum=2**24
    )
    layout: str | None = setting(
        None,
        "`packed`: several examples per row; `padded`: one; unset: `packed` if a task has a target "
        "per token",
        choices=("packed", "padded"),
    )
    lengths: tuple[str, ...] = setting(
        (),
        "with `layout=padded`: lengths of rows below `seq_len`, for batches of shorter examples",
    )
    too_long: str = setting(
        "cut", "examples longer than `seq_len`: `cut`, or `refuse`", choices=("cut", "refuse")
    )
    doc_stride: int | None = count(
        None,
        "with `task.name=answer`: contexts that are too long become overlapping windows, which "
        "start this many tokens apart; unset: they are cut",
        maximum=2**24,
    )
    val_fraction: float = share(0.1, "share of documents held out for validation")
    document_separator: str | None = setting(
        None,
        "split documents at this text, such as `<|endoftext|>`; unset: it is ordinary text",
    )
    stream_files: int = count(
        8,
        "remote files of `source` that are shuffled together; up to twice as many are kept on disk",
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How predictions of a task are made and scored."""

    generate_every: int | None = count(
        None,
        "with `task.name=translate`: steps between evaluations of generated text, a multiple of "
        "`train.eval_every`; unset: only at the end",
    )
    beam: int = count(5, "hypotheses that beam search keeps; 1: greedy", maximum=64)
    length_penalty: float = setting(
        1.0,
        "exponent of the length by which a hypothesis' log-probability is divided; 0: none",
        minimum=-10,
        maximum=10,
    )
    score: str = setting("bleu", "what generated text is scored by", choices=("bleu", "rouge"))
    out_of_scope: str | None = setting(
        None,
        "with `task.name=classify`: label of texts that belong to no class, scored apart",
        longest=200,
    )

"""Remote files: listing, fetching ahead, order, bounded cache, failures."""

import json
import os
import random
import string
import time

import numpy as np
import pytest
from fsspec.core import url_to_fs

from gpt2_jax.data import fetch, remote
from gpt2_jax.data.dataset import open_dataset
from gpt2_jax.data.remote import RemoteFile, list_remote
from gpt2_jax.data.stream import open_stream
from gpt2_jax.errors import UserError
from tests.data.object_store import ObjectStore
from tests.tools import make_text

pytest.importorskip("aiohttp", reason="the https file system of fsspec needs aiohttp")

SEQ_LEN, BATCH, FILES = 20, 4, 6


def document(i):
    """Returns text without repetitions, so that each window occurs once."""
    return "".join(random.Random(i).choices(string.ascii_lowercase, k=300 + 40 * i))


def jsonl(*numbers):
    return "".join(json.dumps({"text": document(i)}) + "\n" for i in numbers).encode()


@pytest.fixture
def store():
    with ObjectStore() as store:
        for i in range(FILES):
            store.objects[f"web/part-{i:03d}.jsonl"] = jsonl(2 * i, 2 * i + 1)
        store.objects["web/README"] = b"about"
        store.objects["val.txt"] = b"some text to validate on"
        yield store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no long waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    return tmp_path / "cache/gpt2_jax/streams"


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """Fetches without starting processes, except in tests of the processes themselves."""
    if "processes" not in request.fixturenames:
        monkeypatch.setattr(fetch, "_run", lambda job: job.work())


@pytest.fixture
def processes():
    """Lets a test start the processes that fetch."""


def opened(store, group=2, val_source=None):
    return open_stream(f"{store.url}/web/*.jsonl", val_source, "bytes", None, group)[0]


def sampler(store, group=2, seed=0, counts=None):
    corpus = opened(store, group)
    corpus.restore(counts)
    return corpus, corpus.sampler(SEQ_LEN, BATCH, seed)


def ids_of(numbers):
    """Returns the tokens of a file: end-of-text, then its documents."""
    return [i for n in numbers for i in (256, *document(n).encode())]


def test_lists_a_glob_a_file_and_a_range_in_order(store):
    names = lambda spec: [file.name for file in list_remote(f"{store.url}/{spec}")]
    assert names("web/*.jsonl") == [f"part-{i:03d}.jsonl" for i in range(FILES)]
    assert names("web/part-001.jsonl") == ["part-001.jsonl"]
    assert names("web/part-{001..003}.jsonl") == [f"part-{i:03d}.jsonl" for i in (1, 2, 3)]
    (file,) = list_remote(f"{store.url}/val.txt")
    assert file.size == 24 and len(file.version) == 34


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.jsonl", "does not exist; check the URL"),
        ("web/README", "matches no remote file in a known format"),
        ("web/part-{3..1}.jsonl", "must be a range"),
    ],
)
def test_a_wrong_url_is_a_one_line_error(store, spec, message):
    with pytest.raises(UserError, match=message) as error:
        list_remote(f"{store.url}/{spec}")
    assert "\n" not in str(error.value)


def test_an_unreachable_server_and_a_missing_package_are_one_line_errors():
    with pytest.raises(UserError, match=r"cannot be read: .*; when it is available, run the same"):
        list_remote("http://127.0.0.1:9/a.jsonl")
    with pytest.raises(UserError, match=r"needs another package: .*s3fs"):
        list_remote("s3://bucket/*.jsonl")


def test_an_epoch_has_every_window_of_every_file_once(store):
    corpus, batches = sampler(store)
    groups = []
    for group in iter(lambda: batches._next_group(), None):
        if group.epoch:
            break
        batches._groups.append(group)
        groups.append(group)
    train = range(FILES - 1)  # the last is held out
    assert sorted(i for group in groups for i in group.files) == list(train)
    assert [len(group.files) for group in groups] == [2, 2, 1]
    n = groups[-1].first + groups[-1].n
    windows = batches.windows(np.arange(n, dtype=np.uint64))
    texts = [ids_of([2 * i, 2 * i + 1]) for i in train]
    for group in groups:
        ids = [i for file in group.files for i in texts[file]]
        found = windows[group.first : group.first + group.n]
        starts = sorted(_find(ids, window.tolist()) for window in found)
        assert starts == list(range(starts[0], starts[0] + SEQ_LEN * group.n, SEQ_LEN))
        assert len(ids) - starts[-1] - SEQ_LEN <= 2 * SEQ_LEN
    assert corpus.counts == [len(text) - 1 for text in texts]


def _find(ids, window):
    (start,) = [i for i in range(len(ids)) if ids[i : i + len(window)] == window]
    return start


def test_order_is_a_function_of_seed_and_step_at_any_seek(store):
    _, batches = sampler(store)
    whole = [batches.batch(step).tokens_BT1 for step in range(70)]  # over an epoch
    corpus, again = sampler(store)
    for step in (69, 3, 40):
        np.testing.assert_array_equal(again.batch(step).tokens_BT1, whole[step])
    rows = [again.batch(50, slice(i, i + 2)).tokens_BT1 for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(rows), whole[50])
    _, other = sampler(store, seed=1)
    assert any((other.batch(i).tokens_BT1 != whole[i]).any() for i in range(3))
    assert None not in corpus.counts


def test_resuming_with_counts_fetches_only_the_files_it_needs(store, cache, processes):
    corpus, batches = sampler(store)
    late = batches.batch(30).tokens_BT1
    settled(batches)
    counts, group = list(corpus.counts), batches._group_of(30 * BATCH)
    fetch.shutil.rmtree(cache)
    store.downloads.clear()
    resumed_corpus, resumed = sampler(store, counts=counts)
    np.testing.assert_array_equal(resumed.batch(30).tokens_BT1, late)
    settled(resumed)
    needed = {*group.files, *resumed._files(*resumed._after(group)), FILES - 1}
    assert {*store.downloads} == {f"web/part-{i:03d}.jsonl" for i in needed}
    assert len(needed) < FILES
    assert resumed_corpus.counts == counts


def settled(batches):
    for future in batches._fetcher._futures.values():
        future.exception()


def test_files_are_fetched_ahead_and_the_cache_is_bounded(store, cache):
    for i in range(FILES, 14):
        store.objects[f"web/part-{i:03d}.jsonl"] = jsonl(i)
    corpus, batches = sampler(store)
    batches.batch(0)
    settled(batches)
    folders = lambda: {path.name for path in cache.iterdir() if (path / "manifest.json").exists()}
    held_out = 1
    assert len(folders()) == 4 + held_out  # this group and the next
    for step in range(60):
        batches.batch(step)
        settled(batches)
        assert len(folders()) <= 4 + held_out
    assert sum(n is not None for n in corpus.counts) >= 6  # of three groups
    assert not [path for path in cache.iterdir() if path.suffix == ".download"]


def test_known_counts_are_reported_as_they_change(store):
    corpus, batches = sampler(store)
    seen = []
    corpus.on_count = lambda: seen.append(list(corpus.counts))
    batches.batch(0)
    assert len(seen) == 1 and sum(n is not None for n in seen[0]) == 2
    batches.batch(0)
    assert len(seen) == 1


def test_failures_are_retried(store):
    corpus = opened(store)
    store.busy, store.cut = 1, 1
    batch = corpus.sampler(SEQ_LEN, BATCH, 0).batch(0)
    assert batch.tokens_BT1.shape == (BATCH, SEQ_LEN + 1)
    assert store.busy == store.cut == 0


def test_a_download_that_ends_early_without_an_error_is_repeated(store, tmp_path, monkeypatch):
    (file,) = list_remote(f"{store.url}/val.txt")
    system, _ = url_to_fs(file.url)
    complete, calls = system.get_file, []

    def get_file(path, target):
        complete(path, target)
        calls.append(target)
        if len(calls) == 1:
            os.truncate(target, 10)

    monkeypatch.setattr(system, "get_file", get_file)
    remote.download(file, tmp_path / "val.txt")
    assert (tmp_path / "val.txt").read_bytes() == store.objects["val.txt"] and len(calls) == 2


def test_a_lasting_failure_is_one_line_and_the_next_call_tries_again(store, processes):
    corpus = opened(store)
    store.busy = 10**6
    batches = corpus.sampler(SEQ_LEN, BATCH, 0)
    with pytest.raises(UserError, match=r"cannot be read: 503.*run the same command") as error:
        batches.batch(0)
    assert "\n" not in str(error.value)
    store.busy = 0
    assert batches.batch(0).tokens_BT1.shape == (BATCH, SEQ_LEN + 1)


def test_a_failure_in_the_background_is_forgotten_when_the_file_is_needed(store):
    corpus = opened(store)
    batches = corpus.sampler(SEQ_LEN, BATCH, 0)
    store.busy = 10**6
    assert isinstance(batches._fetcher.request(0).exception(), UserError)
    store.busy = 0
    assert len(batches._fetcher.open(0).val) == len(ids_of([0, 1])) - 1


def test_a_changed_file_is_refused(store):
    corpus = opened(store)
    for i in range(FILES - 1):
        store.objects[f"web/part-{i:03d}.jsonl"] = jsonl(20 + i)
    with pytest.raises(UserError, match="has changed since the run listed it"):
        corpus.sampler(SEQ_LEN, BATCH, 0).batch(0)
    assert opened(store).content_hash() != corpus.content_hash()


def test_a_file_with_another_number_of_tokens_than_recorded_is_refused(store):
    counts = [10**6] * (FILES - 1)
    _, batches = sampler(store, counts=counts)
    with pytest.raises(UserError, match="tokens, but the run recorded 1000000"):
        batches.batch(0)


def test_invalid_text_names_the_remote_file(store, processes):
    store.objects["web/part-000.jsonl"] = b"not json\n"
    corpus = opened(store, group=FILES)
    with pytest.raises(UserError, match=rf"{store.url}/web/part-000\.jsonl line 1 is not JSON"):
        corpus.sampler(SEQ_LEN, BATCH, 0).batch(0)


def test_validation_text(store, tmp_path):
    assert opened(store).val.window(0, 5).tolist() == list(document(2 * FILES - 2).encode()[:5])
    remote_val = opened(store, val_source=f"{store.url}/val.txt")
    assert bytes(remote_val.val.window(0, 9).astype(np.uint8)) == b"some text"
    assert len(remote_val.jobs) == FILES
    (tmp_path / "val.txt").write_text("local text")
    local = opened(store, val_source=str(tmp_path / "val.txt"))
    assert len(local.val) == 10 and local.bytes_per_token("val") == 1.0
    hashes = {c.content_hash() for c in (opened(store), remote_val, local)}
    assert len(hashes) == 3
    with pytest.raises(
        UserError, match=r"none can be held out for validation; set data\.val_source"
    ):
        open_stream(f"{store.url}/web/part-000.jsonl", None, "bytes", None, 2)


def test_too_little_text_is_a_one_line_error(store):
    corpus = opened(store, group=1)
    with pytest.raises(UserError, match=r"no 1 files together have enough tokens"):
        corpus.sampler(100_000, BATCH, 0).batch(0)


def test_a_mixture_of_remote_and_local_text(store, tmp_path):
    (tmp_path / "code.txt").write_text(make_text(3000, seed=99).upper())
    spec = f"mixture:{store.url}/web/*.jsonl=0.75,{tmp_path}/code.txt=0.25"
    data, _ = open_dataset(spec, None, "bytes", 0.1, stream_files=2)
    saved = []
    data.keep_counts({}, saved.append)
    batch = data.sampler(SEQ_LEN, BATCH, 0).batch(0).tokens_BT1
    upper = [bytes(row[row < 256].astype(np.uint8)).decode().isupper() for row in batch]
    assert sum(upper) == 1
    assert list(saved[0]) == ["web"] and [*data.source_hashes()] == ["web", "code"]


def test_the_process_that_fetches_ends_with_its_parent(store, tmp_path):
    store.allow(0)
    job = fetch.Job(list_remote(f"{store.url}/val.txt")[0], "bytes", "bytes-1", None)
    described = json.dumps([fetch.asdict(job), {"ATTEMPTS": 1, "FIRST_DELAY": 0.01}])
    command = [fetch.sys.executable, "-m", "gpt2_jax.data.fetch", described]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), fetch.subprocess.PIPE)
    with fetch.subprocess.Popen(command, **pipes) as process:
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == 1


def test_remote_file_names_have_no_query():
    assert RemoteFile("https://host/a/b.jsonl?x=1/2", None, "").name == "b.jsonl"

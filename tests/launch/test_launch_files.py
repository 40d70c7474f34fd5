import re
import subprocess

import pytest
import yaml

from gpt2_jax.config import FIELDS
from tests import tools

LAUNCH = tools.ROOT / "docs" / "launch"
FILES = sorted(LAUNCH.iterdir())
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
MANIFESTS = [path for path in FILES if path.suffix == ".yaml"]


def by_name(path):
    return path.name


def commands(text):
    """Returns `(command, flags)` of each `gpt2-jax` in a file, without its comments."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    code = re.sub(r"\\\n|\n +-(?= )", " ", code)  # continued lines, and items of YAML lists
    found = re.findall(r"gpt2-jax\s+(train|ablate)((?:\s+-{1,2}[\w.]+=\S+)*)", code)
    return [(name, re.findall(r"--([\w.]+)=", flags)) for name, flags in found]


def known_flags(command):
    module = {"train": "train", "ablate": "ablate"}[command]
    source = (tools.ROOT / "gpt2_jax" / "cli" / f"{module}.py").read_text()
    return {"config", *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)}


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_flags_exist(path):
    found = commands(path.read_text())
    assert found, "the file starts nothing"
    for command, flags in found:
        for flag in flags:
            assert flag in known_flags(command) or flag.removeprefix("config.") in FIELDS
    if path.name in ("kubernetes_job.yaml", "skypilot.yaml"):
        assert {"coordinator_address", "num_processes", "process_id"} <= set(found[0][1])


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_script_has_no_syntax_error(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=by_name)
def test_manifest_is_yaml(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    for document in documents:
        assert "run" in document or {"apiVersion", "kind", "metadata", "spec"} <= document.keys()
        if "run" in document:
            subprocess.run(["bash", "-n"], input=document["run"], text=True, check=True)


def test_pods_find_process_0_by_the_name_of_their_job():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes_job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert subdomain == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    (script,) = pod["containers"][0]["args"]
    assert f"--coordinator_address={name}-0.{subdomain}:" in script
    assert f"--num_processes={job['spec']['completions']} " in script


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_guide_lists_the_file(path):
    assert f"](../launch/{path.name})" in (tools.ROOT / "docs/guides/multi_host.md").read_text()

"""The parts of SLURM that submitit uses; the jobs of an array are processes on this machine."""

import os
import signal
import sys
from pathlib import Path

HEAD = f"""#!{sys.executable}
import os, re, subprocess, sys
from pathlib import Path
place = Path(__file__).parent

def element(file, i):
    ids = {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": i, "SLURM_JOB_ID": "8" + i}}
    env = os.environ | ids
    nothing = subprocess.DEVNULL
    subprocess.Popen(["bash", file], env=env, stdin=nothing, stdout=nothing, stderr=nothing)
"""
PROGRAMS = {
    "sbatch": """
file = sys.argv[1]
(place / "batch").write_text(file)
first, last = re.search(r"--array=(\\d+)-(\\d+)", open(file).read()).groups()
for i in range(int(first), int(last) + 1):
    element(file, str(i))
print("Submitted batch job 77")
""",
    # A step is a separate session: signals go to its processes, not to the batch's shell.
    "srun": """
assert sys.argv[1:3] == ["--unbuffered", "--output"] and sys.argv[4] == "--error"
named = lambda path: path.replace("%A", "77").replace("%a", os.environ["SLURM_ARRAY_TASK_ID"])
out, err = (open(named(sys.argv[i]).replace("%t", "0"), "a") for i in (3, 5))
command = sys.argv[6:]
step = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
(place / ("step_" + os.environ["SLURM_ARRAY_TASK_ID"])).write_text(str(step.pid))
sys.exit(step.wait())
""",
    "scontrol": """
assert sys.argv[1] == "requeue"
with open(place / "requeued", "a") as file:
    print(sys.argv[2], file=file)
element((place / "batch").read_text(), sys.argv[2].partition("_")[2])
""",
}


def install(place: Path) -> str:
    """Writes the programs into a folder and returns a PATH that begins with it."""
    place.mkdir()
    for name, body in PROGRAMS.items():
        (place / name).write_text(HEAD + body)
        (place / name).chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


def warn(place: Path, i: int) -> None:
    """Sends the signal that SLURM sends shortly before a job times out."""
    os.killpg(int((place / f"step_{i}").read_text()), signal.SIGUSR2)

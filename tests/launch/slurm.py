"""A SLURM of one machine, with its own configuration, that lives as long as a context."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")


def missing() -> str | None:
    """Returns why SLURM cannot be started here, None if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if absent := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "the daemons of SLURM need root"


class Slurm:
    """Starts the daemons, and ends them and their jobs on leaving the context.

    Jobs in the partition `low` are preempted, and queued again, by those in `high`.
    """

    def __init__(self, folder):
        self.folder = folder
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._daemons = []

    def _configuration(self, ports):
        host, folder = socket.gethostname().split(".")[0], self.folder
        return f"""
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MpiDefault=none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""

    def __enter__(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        os.chmod(self.folder, 0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(2)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in probes]
        (self.folder / "slurm.conf").write_text(self._configuration(ports))
        files = [
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed", "log")
        ]
        self._start(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files
        )
        self._wait(lambda: (self.folder / "munge.socket").exists())
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-c")
        self._wait(lambda: "State=IDLE" in self.run("scontrol", "show", "node", check=False))
        return self

    def __exit__(self, *exception):
        self.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 30
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, *command):
        with open(self.folder / f"{command[0]}.out", "w") as out:
            daemon = subprocess.Popen(command, env=self.env, stdout=out, stderr=out)
        self._daemons.append(daemon)

    def _wait(self, is_ready, seconds=60):
        deadline = time.monotonic() + seconds
        while not is_ready():
            ended = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self):
        """Returns the last lines that each daemon wrote."""
        return {path.name: path.read_text()[-2000:] for path in self.folder.glob("*.out")}

    def run(self, *command, check=True):
        """Runs one of SLURM's commands and returns its output."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, (done.stdout, done.stderr, self.logs())
        return done.stdout

    def submit(self, *words):
        """Submits a job and returns its number."""
        return self.run("sbatch", "--parsable", *words).strip()

    def start_now(self, number):
        """Starts a job that was queued again, which SLURM would do after two minutes."""
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)

    def job(self, number):
        """Returns the fields of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

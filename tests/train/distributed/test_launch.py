import pytest

from gpt2_jax.errors import UserError
from gpt2_jax.train.distributed.launch import Launch, find_launch, indicates_several

NONE = (None, None, None)
NAMES = ("SLURM", "OMPI", "KUBERNETES", "JOB_COMPLETION", "TPU_", "JAX_COORDINATOR", "CUDA_VISIBLE")
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture
def find(monkeypatch):
    """Returns `find_launch` in an environment, which jax reads from os.environ."""
    import os

    def find(given, env):
        for name in [name for name in os.environ if name.startswith(NAMES)]:
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return find_launch(*given, os.environ)

    return find


def test_flags_name_the_processes(find):
    assert find(("host:1234", 2, 1), {}) == Launch("host:1234", 2, 1)
    assert find(NONE, {}) is None
    assert find((None, 2, 1), {"JAX_COORDINATOR_ADDRESS": "host:1"}) == Launch("host:1", 2, 1)


@pytest.mark.parametrize("env", [SLURM, OPEN_MPI], ids=["slurm", "open_mpi"])
def test_one_process_is_alone_whatever_the_scheduler_says(find, env):
    assert find(NONE, env) is not None
    assert find((None, 1, None), env) is None


def test_slurm_step_is_detected(find):
    port = 7 % 2**12 + 65535 - 2**12 + 1
    assert find(NONE, SLURM) == Launch(f"node03:{port}", 2, 1)
    assert find(NONE, SLURM | {"JAX_COORDINATOR_PORT": "99"}).coordinator == "node03:99"
    assert find(("other:5", None, None), SLURM) == Launch("other:5", 2, 1)


def test_processes_on_one_machine_have_a_gpu_each(find):
    pair = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert find(NONE, pair).local_devices == (1,)
    assert find(NONE, pair | {"CUDA_VISIBLE_DEVICES": "0,1"}).local_devices == (1,)
    assert find(NONE, pair | {"CUDA_VISIBLE_DEVICES": "1"}).local_devices is None
    assert find(NONE, SLURM).local_devices is None


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},  # an element of an array
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},  # a shell in a larger job
    ],
)
def test_step_of_one_task_is_alone(find, changes):
    assert find(NONE, SLURM | changes | {"SLURM_PROCID": "0"}) is None


def test_script_of_a_slurm_job_is_alone(find):
    env = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert find(NONE, env | {"SLURM_PROCID": "0"}) is None


def test_open_mpi_is_detected(find):
    found = find(NONE, OPEN_MPI)
    assert (found.coordinator.split(":")[0], found.count, found.index) == ("10.96.0.1", 4, 3)
    assert found.local_devices == (1,)


def test_open_mpi_without_an_address_is_refused(find):
    """Open MPI 5 does not pass it on, and jax needs mpi4py to ask for it."""
    version_5 = {name: v for name, v in OPEN_MPI.items() if name.startswith("OMPI_COMM")}
    ours, of_jax_012 = "one of 4 processes of Open MPI", "Open MPI 5 or newer requires mpi4py"
    with pytest.raises(UserError, match=f"{ours}|{of_jax_012}"):
        find(NONE, version_5)


def test_pod_is_alone_unless_it_is_one_of_several(find):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert find(NONE, pod) is None
    assert find(NONE, pod | {"JOB_COMPLETION_INDEX": "0"}) is None
    with pytest.raises(UserError, match="this pod is number 1 of an indexed Job"):
        find(NONE, pod | {"JOB_COMPLETION_INDEX": "1"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host", 2, 0), "--coordinator_address=host must be HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2 must be at least 0 and below --num_processes=2"),
        (("host:1", 2, None), "pass --coordinator_address, --num_processes and --process_id"),
        ((None, 2, 0), "pass --coordinator_address, --num_processes and --process_id"),
    ],
)
def test_wrong_flags_are_refused(find, given, message):
    with pytest.raises(UserError, match=message):
        find(given, {})


def test_quick_guess_covers_the_schedulers():
    assert indicates_several(SLURM) and indicates_several(OPEN_MPI)
    assert not indicates_several({"SLURM_STEP_NUM_TASKS": "1"})

"""SLURM: submit an array through submitit's executor, and ask squeue and sacct about it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from dtrain.config import ConfigError
from launch.settings import Launcher

# What a shell inside a job would hand down to the jobs that it submits.
_INHERITED = ("SLURM_", "SLURMD_", "SRUN_", "PMI_")
_RANK = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# What a run needs, and what judges runs does not.
_RESOURCES = (
    "nodes", "tasks_per_node", "gpus_per_node", "gpus_per_task", "cpus_per_task", "cpus_per_gpu", "mem_gb",
    "mem_per_gpu", "mem_per_cpu", "exclusive", "dependency", "signal_delay_s", "array_parallelism",
)  # fmt: skip
PING = 10.0  # seconds that a cluster has to answer


def available() -> bool:
    """Whether this machine has what submits to a cluster."""
    return shutil.which("sbatch") is not None


def answers() -> bool:
    """Whether a cluster's controller answers."""
    return any(words[-1].endswith(" UP") for words in _ask("scontrol", "ping", timeout=PING) or [])


class ArrayExecutor(SlurmExecutor):
    """submitit's executor, submitting a command instead of a pickle."""

    def submit_tasks(self, launcher: Launcher, tasks: list[int], log: Path, code: Path, job: str) -> str:
        """Submits one array and returns its id. Raises ConfigError with sbatch's own words.

        log: with %a for the task. job: what follows `python -m`.
        """
        fields = launcher.public() | {"tasks_per_node": launcher.tasks}
        extra = {"array": ",".join(map(str, tasks)) + f"%{launcher.array_parallelism}", "output": str(log)}
        return self._submit_module(fields, extra, code, job)

    def submit_judge(self, launcher: Launcher, after: list[str], log: Path, code: Path, sweep: Path) -> str:
        """Submits a small job that judges a halving sweep after these arrays. As submit_tasks."""
        fields = {k: v for k, v in launcher.public().items() if k not in _RESOURCES}
        fields |= {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "timeout_min": min(30, launcher.timeout_min)}
        fields["dependency"] = "afterany:" + ":".join(after)
        return self._submit_module(fields, {"output": str(log)}, code, f"launch.judge {shlex.quote(str(sweep))}")

    def _submit_module(self, fields: dict[str, Any], extra: dict[str, Any], code: Path, module: str) -> str:
        fields = {k: v for k, v in fields.items() if k not in ("max_num_timeout", "points_per_gpu")}
        fields["additional_parameters"] = fields.get("additional_parameters", {}) | extra | {"requeue": True}
        # The header is submitit's; srun is started by launch.job, once for each attempt.
        self.parameters = self._convert_parameters(fields) | {
            "stderr_to_stdout": True, "use_srun": False, "wckey": None,
        }  # fmt: skip
        command = (
            f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1\n'
            f"exec {self.python} -u -m {module}"
        )
        try:
            return str(self._submit_command(command).job_id)
        except (FailedJobError, FailedSubmissionError) as e:
            lines = [line.strip() for line in str(e).splitlines() if "sbatch:" in line]
            said = "\n  ".join(lines) or str(e)
            raise ConfigError(f"sbatch refused: {said}\n  sweep.where=local runs the points on this machine") from e

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        names = [n for n in os.environ if n.startswith(_INHERITED) or n in _RANK]
        unset = [f"--unset={n}" for n in names if n != "SLURM_CONF"]
        return ["env", *unset, "sbatch", str(submission_file_path)]


def _ask(*command: str, timeout: float = 60.0) -> list[list[str]] | None:
    """The |-separated lines of a SLURM command; None if it does not answer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.split("|") for line in answer.stdout.splitlines()]


def queue() -> dict[tuple[str, int], tuple[str, str]] | None:
    """(array id, index) -> (state, reason) of this user's waiting and running array tasks; None without an answer."""
    rows = _ask("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r")
    return None if rows is None else {(job, int(i)): (state, why) for job, i, state, why in rows if i.isdigit()}


def largest_task() -> int:
    """The largest number that the cluster lets an array's task have."""
    for line in _ask("scontrol", "show", "config") or []:
        key, _, value = line[0].partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return int(value) - 1
    return 1000  # SLURM's default


def scripts() -> list[tuple[str, str]]:
    """(array id, its script) of this user's waiting and running jobs."""
    rows = _ask("squeue", "--me", "--noheader", "--format=%F|%o") or []
    return [(job, "|".join(command)) for job, *command in rows]


def accounting(jobs: list[str]) -> dict[tuple[str, int], str]:
    """(array id, index) -> last state; {} where the cluster keeps no accounts."""
    named = ",".join(filter(None, jobs))
    if not named:
        return {}
    rows = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={named}")
    states = {}
    for name, state in rows or []:
        job, _, index = name.partition("_")
        if index.isdigit():
            states[job, int(index)] = state.split()[0]
    return states


def own_job() -> str:
    """This job, as SLURM's commands name it alone: one task of an array has the number of the whole array."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def still_wanted(job: str) -> bool:
    """Whether a job that runs this very code is running, and not being cancelled, requeued or timed out."""
    return _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T") == [["RUNNING"]]


def waits(job: str) -> bool:
    """Whether a job waits or runs."""
    return bool(_ask("squeue", "--noheader", f"--jobs={job}", "--format=%T"))


def requeue(job: str) -> bool:
    """Puts a running job back into the queue; whether SLURM agreed."""
    return _ask("scontrol", "requeue", job) is not None


def signal_steps(number: int, *jobs: str) -> bool:
    """Signals what runs in jobs, or array tasks, but not the jobs' own script. Whether SLURM agreed."""
    return _ask("scancel", f"--signal={number}", *jobs) is not None


def cancel(*jobs: str) -> bool:
    """Cancels jobs, or array tasks (4711_3): SIGTERM, and KillWait seconds to save. Whether SLURM agreed."""
    return _ask("scancel", *jobs) is not None

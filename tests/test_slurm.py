"""The scripts for SLURM, with SLURM's commands played by small scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from experimenting import ROOT


def job_of(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    path = f"{variables.pop('first_on_path', '')}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**variables, "PATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize("task", ["0", "3", "15"])
def test_a_job_of_a_slurm_array_has_its_share_whichever_are_submitted(tmp_path, task):
    """SLURM's own counts are of the jobs of one submission: --array=3 alone is one job of one."""
    (tmp_path / "table.sh").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "table.sh").chmod(0o755)
    submitted = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": task, "SLURM_ARRAY_TASK_COUNT": "1"}
    job = job_of("slurm_table.sh", "16", str(tmp_path / "table.sh"), "--scale", "full", **submitted)
    assert job.stdout.split() == ["--scale", "full", "--shard", f"{task}/16"]


@pytest.mark.parametrize(
    "arguments, task", [(["scripts/crown_ibp/tableD.sh"], "0"), (["16"], "0"), (["16", "true"], "")]
)
def test_a_slurm_array_without_its_shares_is_refused(arguments, task):
    job = job_of("slurm_table.sh", *arguments, SLURM_ARRAY_TASK_ID=task)
    assert job.returncode == 2 and "expected sbatch --array=0-15 scripts/slurm_table.sh 16 SCRIPT" in job.stderr


@pytest.fixture
def training(tmp_path):
    """Return a function that runs slurm_train.sh, and what it asked SLURM for."""
    asked = tmp_path / "asked"
    for name, more in (("srun", "exit $FAILS_WITH"), ("scontrol", "echo machine")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> "{asked}"\n{more}\n')
        program.chmod(0o755)
    job = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "machine", "SLURM_JOB_NUM_NODES": "1"}
    job |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "8", "first_on_path": str(tmp_path / "bin")}

    def train(*arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        done = job_of("slurm_train.sh", *arguments, "--out", str(tmp_path / "run"), **{**job, **variables})
        return done, asked.read_text().splitlines() if asked.exists() else []

    return train


def test_a_mistake_ends_a_training_job_at_once(training):
    done, asked = training("--method", "mtl_ibpp", FAILS_WITH="1")
    assert (done.returncode, asked) == (2, [])
    assert "did you mean 'mtl_ibp'" in done.stderr


@pytest.mark.parametrize(
    "fails_with, restarts, again", [("0", "0", False), ("1", "0", True), ("1", "2", True), ("1", "3", False)]
)
def test_a_training_job_that_was_stopped_asks_to_be_run_again(training, fails_with, restarts, again):
    done, asked = training("--method", "ibp", FAILS_WITH=fails_with, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == int(fails_with)
    assert [line for line in asked if "requeue" in line] == (["scontrol requeue 41234"] if again else [])
    (srun,) = [line for line in asked if line.startswith("srun")]
    assert "--rdzv-endpoint=machine:21234 train.py --resume --quiet --method ibp" in srun


def test_a_dry_run_that_fails_otherwise_says_nothing(training, tmp_path):
    """One GPU may be too small for the batch of many."""
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/bash\nexit 1\n")
    python.chmod(0o755)
    done, asked = training("--method", "ibp", FAILS_WITH="0")
    assert done.returncode == 0 and any(line.startswith("srun") for line in asked)

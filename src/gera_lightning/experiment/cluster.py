"""Commands as jobs of a cluster, by submitit: submit them, say how to watch them, wait for them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gera_lightning.utils.errors import UserError

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission


@dataclass(frozen=True)
class Command:
    """A command line as a job; where the job is preempted or reaches its time limit, it is
    submitted again and goes on.
    """

    words: Sequence[str]

    def __call__(self) -> None:
        """Run it to the end.

        Raises:
            subprocess.CalledProcessError: it ended with another code than 0.
        """
        subprocess.run(self.words, check=True)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs in place of an interrupted job: the same command, which skips what is
        finished.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    commands: Sequence[Sequence[str]], cluster: str, resources: Mapping[str, Any], folder: Path
) -> list[Job[None]]:
    """Submit each command as a job; on SLURM they are one job array.

    Args:
        commands: command lines, run in the present working directory.
        cluster: `slurm`, or `local` for processes of this machine.
        resources: parameters of `submitit.AutoExecutor.update_parameters`: `timeout_min`,
            `cpus_per_task`, `slurm_partition`, ...
        folder: where submitit keeps the jobs' logs.

    Raises:
        UserError: submitit is not installed, no such cluster here, or a parameter that it refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "sweep.submit needs submitit: pip install 'gera-lightning[cluster]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**resources)
        with executor.batch():
            return [executor.submit(Command(list(words))) for words in commands]
    except (
        NameError,
        AssertionError,
        ValueError,
        TypeError,
    ) as error:  # how submitit refuses parameters
        raise UserError(
            f"sweep.resources={dict(resources)}: submitit refuses them ({_line(error)})"
        ) from error
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise UserError(
            f"sweep.submit={cluster}: the jobs cannot be submitted ({_line(error)})"
        ) from error


def watching(jobs: Sequence[Job[None]], cluster: str) -> str:
    """The submitted jobs in words: their ids, their logs, and how to watch them."""
    lines = [f"submitted {len(jobs)} jobs to {cluster}"]
    lines += [f"  job {job.job_id:<12} tail -f {job.paths.stdout}" for job in jobs]
    if cluster == "slurm":
        array = ",".join(sorted({str(job.job_id).split("_")[0] for job in jobs}))
        lines.append(f"all of them: squeue -j {array}   stop them: scancel {array}")
    return "\n".join(lines)


def wait(jobs: Sequence[Job[None]]) -> None:
    """Wait for all jobs.

    Raises:
        UserError: after all have ended, naming those that failed and their logs.
    """
    failed = []
    for job in jobs:
        if job.exception() is not None:
            failed.append(f"job {job.job_id} (see {job.paths.stderr})")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; the same command runs"
            " only what is missing"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""The runs of a sweep as Slurm jobs, through submitit. Imported by sweep.py where it is asked for:

    python scripts/sweep.py run configs/sweep_example.yaml --cluster slurm --partition all --timeout_min 60

A job runs one run's command, which goes on where it broke off; so a job that is queued again (by Slurm after
pre-emption or the loss of a node, by submitit shortly before its time is up) needs to know nothing of what was done.
"""

import contextlib
import io
import shlex
import signal
from dataclasses import astuple

import submitit
from submitit.core.utils import FailedJobError

from landscape.errors import ContentError, Interrupted, UsageError
from scripts import sweep_grid, sweep_work

LIMITS = 10_000  # time limits that a run may use up, one after the other: as many as it needs
ARRAY = 1000  # tasks of a job array; Slurm's usual limit is 1001


class Job(submitit.helpers.Checkpointable):
    """What a job does, as submitit pickles it: home is the sweep's folder, fields are those of a sweep_grid.Member."""

    def __init__(self, home, fields):
        self.home, self.fields = home, fields

    def __call__(self):
        member = sweep_grid.Member(*self.fields)
        outcome, asked = sweep_work.work(self.home, member, submitit.JobEnvironment().job_id)
        if outcome == "interrupted" and asked in ("SIGUSR1", "SIGUSR2"):
            signal.raise_signal(signal.Signals[asked])  # the run has saved: submitit's own handler queues the job again
        if outcome == "interrupted":
            raise Interrupted(f"run {member.number} has saved its state; submit the sweep again if Slurm does not")
        if outcome == "failed":
            raise ContentError(f"run {member.number} failed: see {member.log(self.home)}")


def submitted(home, members, args):
    """Submit a job for each member; yields (member, job id). Raises UsageError where there is no Slurm or sbatch
    refuses."""
    further = {}
    for word in args.sbatch:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UsageError(f"--sbatch {word}: KEY=VALUE is expected, such as account=NAME")
        further[key.lstrip("-")] = value
    seconds = 60 * args.timeout_min
    wanted = {"partition": args.partition, "mem": args.mem, "gpus_per_node": args.gpus_per_node or None}
    try:
        executor = submitit.SlurmExecutor(home / "slurm", max_num_timeout=LIMITS)
        executor.update_parameters(
            job_name=home.name, time=args.timeout_min, cpus_per_task=args.cpus_per_task, stderr_to_stdout=True,
            array_parallelism=args.jobs or ARRAY, signal_delay_s=min(120, seconds // 4),
            setup=[f"export PYTHONPATH={shlex.quote(sweep_work.environment([])['PYTHONPATH'])}"],
            additional_parameters={"requeue": True, **further}, **{k: v for k, v in wanted.items() if v is not None})
        for first in range(0, len(members), ARRAY):
            part = members[first:first + ARRAY]
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # it prints what it raises
                jobs = [executor.submit(Job(home, astuple(m))) for m in part]
            yield from zip(part, (job.job_id for job in jobs))
    except FailedJobError as e:
        raise UsageError(f"sbatch refuses: {e}") from None
    except RuntimeError as e:  # no srun here
        raise UsageError(f"--cluster slurm: {e}") from None

"""What runs in Tune's process for a trial. It imports nothing heavy: its process has nothing to do but wait."""

from typing import Any

from tune.rows import Trial


def drive(config: dict[str, Any], trials: dict[str, Trial]) -> None:
    """Let a trial, `config["run"]` by name, go on in a process that is outside Tune's placement group.

    Inside of it nothing that takes a CPU could be placed. The process ends with its trial, and gives its memory back.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy="DEFAULT")(work)
    ray.get(task.remote(trials[config["run"]]))


def work(trial: Trial) -> None:
    """`tune.trial.carry_out`, imported where it is needed."""
    from tune.trial import carry_out

    carry_out(trial)

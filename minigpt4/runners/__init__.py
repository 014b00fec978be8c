"""The training loop.

In reading order: runner.py, the loop; step_guard.py and averaging.py, what a step does to the weights; progress.py and
throughput.py, what is logged; watching.py and validation.py; checkpointing.py and going_on.py, what is saved and how
a run continues from it; data_monitor.py, bad samples; process.py, signals and locks; sharding.py, FSDP.
"""

from .runner import Runner

__all__ = ["Runner"]

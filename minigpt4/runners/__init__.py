"""The training loop.

In reading order: runner.py, the loop; step_guard.py and averaging.py, steps and weights; progress.py, what is logged;
validation.py; checkpointing.py, how a run is saved and resumed; data_monitor.py, bad samples; process.py, signals and
locks; sharding.py, FSDP.
"""

from .runner import Runner

__all__ = ["Runner"]

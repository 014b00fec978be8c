"""The training loop.

In reading order: runner.py, the loop; guards.py, bad samples and steps; averaging.py, averaged weights; progress.py,
what is logged; validation.py; checkpointing.py, how a run is saved and resumed; process.py, signals and locks;
sharding.py, FSDP.
"""

from .runner import Runner

__all__ = ["Runner"]

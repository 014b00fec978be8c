"""What a process knows about the others: read from torchrun's environment, so that it is known before torch is."""

import os


def rank() -> int:
    """This process's number among all processes of the run (0 without torchrun)."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes the run has (1 without torchrun)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def default_device() -> str:
    """cuda where there is a GPU, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

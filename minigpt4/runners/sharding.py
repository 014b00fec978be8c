"""A frozen LLM that is too large for one GPU, parted over all processes of a run (FSDP2)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_llm(llm: nn.Module, device: torch.device, world_size: int) -> None:
    """Give each process 1 / world_size of every layer; a layer is whole only while it computes, forward and backward.

    The layers come to `device` one by one, so an LLM on the CPU never has to fit on the GPU as a whole. It is frozen:
    there are no gradients to part. The input embeddings and lm_head stay whole (0.65 GB for LLaMA-13B), for they are
    called apart from the LLM's body. What is trained (the projection) is not touched: DDP sums its gradients.

    Args:
        llm: a causal LM of transformers, frozen.
    """
    if device.type == "cuda":
        llm.set_attn_implementation("sdpa")  # it was read for the CPU
    mesh = init_device_mesh(device.type, (world_size,))
    body = llm.get_decoder()
    for layer in body.layers:
        fully_shard(layer, mesh=mesh)
    embeddings = set(llm.get_input_embeddings().parameters())
    # The body's own part too is given back after a forward: reading a state dict on rank 0 alone (a checkpoint) does so
    # there, and the processes would disagree about what to gather next.
    fully_shard(body, mesh=mesh, ignored_params=embeddings, reshard_after_forward=True)
    llm.get_input_embeddings().to(device)
    llm.get_output_embeddings().to(device)

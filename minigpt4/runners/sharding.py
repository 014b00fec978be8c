"""A frozen LLM that is too large for one GPU, sharded over all processes of a run (FSDP2)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_llm(llm: nn.Module, device: torch.device, dtype: torch.dtype, world_size: int) -> None:
    """Give each process 1 / world_size of every layer; a layer is whole only while it computes, forward and backward.

    The layers come to `device` one by one, so an LLM on the CPU never has to fit on the GPU as a whole; and they are
    cast there, so its weight files stay memory-mapped and a machine holds one copy of them, not one for each process.
    The LLM is frozen: there are no gradients to shard. The input embeddings and lm_head stay whole (0.65 GB for
    LLaMA-13B), for they are called apart from the LLM's body. The trained projection is not touched: DDP sums its
    gradients.

    Call it after `accelerator.prepare`, which refuses a model with sharded parameters.

    Args:
        llm: a causal LM of transformers, frozen, in the dtype of its files.
        dtype: what it computes in.
    """
    stored = llm.dtype

    def place(module: nn.Module) -> nn.Module:
        """To the device and `dtype`; buffers (rotary frequencies) keep their fp32."""
        module.to(device)
        for parameter in module.parameters():
            if parameter.dtype == stored:
                parameter.data = parameter.data.to(dtype)
        return module

    mesh = init_device_mesh(device.type, (world_size,))
    body = llm.get_decoder()
    for layer in body.layers:
        fully_shard(place(layer), mesh=mesh)
    for module in (*body.children(), llm.get_output_embeddings()):
        if module is not body.layers:
            place(module)
    embeddings = set(llm.get_input_embeddings().parameters())
    # The body's own part too is given back after a forward: reading a state dict on rank 0 alone (a checkpoint) does so
    # there, and the processes would disagree about what to gather next.
    fully_shard(body, mesh=mesh, ignored_params=embeddings, reshard_after_forward=True)

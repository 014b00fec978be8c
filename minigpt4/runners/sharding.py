"""A frozen LLM that is too large for one GPU, sharded over all processes of a run (FSDP2)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_llm(llm: nn.Module, device: torch.device, dtype: torch.dtype, world_size: int) -> None:
    """Give each process 1 / world_size of every layer of a frozen LLM, which then computes in `dtype`; a layer is whole
    only while it computes, forward and backward.

    The layers move to `device` one by one and are cast there, so the LLM need not fit on one GPU, and the processes of
    a machine share the memory-mapped files. The input embeddings and lm_head stay whole (0.65 GB for LLaMA-13B),
    because they are called outside the LLM's body. Call it after `accelerator.prepare`, which refuses a model with
    sharded parameters.
    """
    stored = llm.dtype

    def place(module: nn.Module) -> nn.Module:
        """Move and cast; buffers (rotary frequencies) stay fp32."""
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
    # Reading a state dict on rank 0 alone (a checkpoint) reshards the body there, so all processes must reshard it.
    fully_shard(body, mesh=mesh, ignored_params=embeddings, reshard_after_forward=True)

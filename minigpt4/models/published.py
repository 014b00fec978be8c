"""Loading and saving the parts of MiniGPT-4 under the published parameter names, which the original reads too."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..common.checkpoint import check_loaded, load_exact, named_tensors, read_state
from ..common.errors import CheckpointError
from . import qformer as qf
from .adapters import llm_name, lora_tensors
from .eva_vit import published_vit_state

PARTS = ("visual_encoder", "ln_vision", "query_tokens", "Qformer", "llama_proj", "llama_model")


class PublishedWeights(nn.Module):
    """The part of MiniGPT4 that knows weight files."""

    def load_vision(self, device: torch.device) -> None:
        """Load vit_ckpt and q_former_model, where the config names them."""
        if self.config.vit_ckpt:
            self.load_vit(read_state(self.config.vit_ckpt), device)
        if self.config.q_former_model:
            self.load_qformer(read_state(self.config.q_former_model), device)

    def load_ckpt(self) -> None:
        """Load `ckpt`, where the config names it. Raises CheckpointError when weights are missing then."""
        if self.config.ckpt:
            self.load_trained(self.config.ckpt)
        for name, part in self.named_children():
            if not (name == "llama_model" and self.config.device_map):  # layers on disk are empty here
                check_loaded(part)

    def load_vit(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Load the content of vit_ckpt. `device`: see `load_exact`."""
        state = published_vit_state(state, self.visual_encoder)
        load_exact(named_tensors(self.visual_encoder), state, self.config.vit_ckpt, device=device)

    def load_qformer(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Load Qformer, query_tokens and ln_vision from the content of q_former_model."""
        others = ("llama_proj.",) if self.config.has_qformer else ("llama_proj.", "Qformer.", "query_tokens")
        load_exact(
            self.published_tensors(("Qformer", "query_tokens", "ln_vision")), state, self.config.q_former_model,
            ignore=lambda name: qf.IGNORED.match(name) or name.startswith(others), device=device,
        )  # fmt: skip

    def published_tensors(self, modules: Sequence[str] = PARTS) -> dict[str, Tensor]:
        """The live tensors of these parts (all by default) under the published names."""
        found: dict[str, Tensor] = {}
        names = {"Qformer": qf.to_published, "llama_model": lambda name: f"llama_model.{llm_name(name)}"}
        for part in modules:
            module = getattr(self, part)
            if isinstance(module, nn.Parameter):
                found[part] = module
            elif module is not None:  # None: without Q-Former
                rename = names.get(part, lambda name, part=part: f"{part}.{name}")
                found |= {rename(name): tensor for name, tensor in named_tensors(module).items()}
        return found

    def trained_tensors(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds: trained parameters, and buffers that change with them (a CNN's
        batch-norm statistics). With a Q-Former from scratch, or none, also ln_vision, so that the checkpoint can be the
        next run's q_former_model."""
        found: dict[str, Tensor] = {}
        for part in PARTS:
            tensors = self.published_tensors([part])
            # Among the LLM's buffers are the scales of its 8-bit layers, which do not change.
            buffers = part != "llama_model" and any(v.requires_grad for v in tensors.values())
            found |= {
                k: v for k, v in tensors.items() if v.requires_grad or (buffers and not isinstance(v, nn.Parameter))
            }
        if self.config.q_former_model is None and not (self.config.has_qformer and self.config.freeze_qformer):
            found |= self.published_tensors(["ln_vision"])
        return found

    def trained_state(self) -> dict[str, Tensor]:
        """`trained_tensors`, detached."""
        return {k: v.detach() for k, v in self.trained_tensors().items()}

    def load_trained(self, path: str, state: dict[str, Tensor] | None = None) -> None:
        """Load a checkpoint of ours or of the original (`{"model": ...}`), or safetensors with the same names.

        It must hold llama_proj. Of each other part (Q-Former, ViT, LoRA) it must hold all or nothing; all when no other
        file of the config holds that part. LoRA may start anew. `state` is the file's content, if it was read already.
        """
        state = read_state(path) if state is None else state
        if not self.config.lora and any(".lora_" in name for name in state):
            raise CheckpointError(f"{path} holds LoRA matrices, but model.lora is not set: write it as in training")
        lora = {f"llama_model.{llm_name(name)}": p for name, p in lora_tensors(self.llama_model).items()}
        targets, required, config = {}, set(), self.config
        other_files = dict.fromkeys(("ln_vision", "query_tokens", "Qformer"), config.q_former_model)
        other_files |= {"llama_proj": None, "visual_encoder": config.vit_ckpt, "llama_model": config.llama_model}
        for part, other_file in other_files.items():
            tensors = lora if part == "llama_model" else self.published_tensors([part])
            targets |= tensors
            if other_file is None or any(name in tensors for name in state):
                required |= set(tensors)
        load_exact(targets, state, path, required=required, device=self.device)

"""What of a MiniGPT-4 lies in which file, under the published names, so that the original opens what we write."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..common.checkpoint import load_exact, named_tensors, read_state
from ..common.errors import CheckpointError
from ..common.memory import check_loaded
from . import qformer as qf
from .adapters import llm_name, lora_tensors
from .eva_vit import published_vit_state

PARTS = ("visual_encoder", "ln_vision", "query_tokens", "Qformer", "llama_proj", "llama_model")


class PublishedWeights(nn.Module):
    """The file side of MiniGPT4, which has the parts as attributes, and its `config`."""

    def load_vision(self, device: torch.device) -> None:
        """The files of vit_ckpt and q_former_model, where the config names them -> this model."""
        if self.config.vit_ckpt:
            self.load_vit(read_state(self.config.vit_ckpt), device)
        if self.config.q_former_model:
            self.load_qformer(read_state(self.config.q_former_model), device)

    def load_ckpt(self) -> None:
        """The file of `ckpt`, where the config names one -> this model, which must then be whole.

        Raises:
            CheckpointError: it does not fit; or no file of the config brought some weights.
        """
        if self.config.ckpt:
            self.load_trained(self.config.ckpt)
        for name, part in self.named_children():
            if not (name == "llama_model" and self.config.device_map):  # what lies on disk is empty here
                check_loaded(part)

    def load_vit(self, state: dict[str, Tensor], device: torch.device) -> None:
        """What vit_ckpt holds -> visual_encoder. `device`: see `load_exact`."""
        state = published_vit_state(state, self.visual_encoder)
        load_exact(named_tensors(self.visual_encoder), state, self.config.vit_ckpt, device=device)

    def load_qformer(self, state: dict[str, Tensor], device: torch.device) -> None:
        """What q_former_model holds -> Qformer, query_tokens, ln_vision."""
        others = ("llama_proj.",) if self.config.has_qformer else ("llama_proj.", "Qformer.", "query_tokens")
        load_exact(
            self.published_tensors(("Qformer", "query_tokens", "ln_vision")),
            state,
            self.config.q_former_model,
            ignore=lambda name: qf.IGNORED.match(name) or name.startswith(others),
            device=device,
        )

    def published_tensors(self, modules: Sequence[str] = PARTS) -> dict[str, Tensor]:
        """The live tensors of these parts (all by default) under the published names."""
        found: dict[str, Tensor] = {}
        for name in modules:
            module = getattr(self, name)
            if module is None:  # without Q-Former
                continue
            if isinstance(module, nn.Parameter):
                found[name] = module
            elif name == "Qformer":
                found |= qf.to_published_state(named_tensors(module))
            elif name == "llama_model":
                found |= {f"{name}.{llm_name(k)}": v for k, v in named_tensors(module).items()}
            else:
                found |= {f"{name}.{k}": v for k, v in named_tensors(module).items()}
        return found

    def trained_tensors(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds, under their published names: the parameters that are trained, and
        the buffers that change with them (a CNN's batch-norm statistics). With a Q-Former from scratch, or none, goes
        ln_vision, so that the checkpoint can be the next run's q_former_model."""
        found: dict[str, Tensor] = {}
        for part in PARTS:
            tensors = self.published_tensors([part])
            # The LLM has no such buffers, but its 8-bit layers keep their scales among them.
            trained = part != "llama_model" and any(v.requires_grad for v in tensors.values())
            found |= {
                k: v for k, v in tensors.items() if v.requires_grad or (trained and not isinstance(v, nn.Parameter))
            }
        if self.config.q_former_model is None and not (self.config.has_qformer and self.config.freeze_qformer):
            found |= self.published_tensors(["ln_vision"])
        return found

    def trained_state(self) -> dict[str, Tensor]:
        """`trained_tensors`, apart from the graph."""
        return {k: v.detach() for k, v in self.trained_tensors().items()}

    def load_trained(self, path: str, state: dict[str, Tensor] | None = None) -> None:
        """Load a checkpoint of ours or of the original (`{"model": ...}`), or safetensors with the same names.

        It must hold llama_proj. Of each other part (Q-Former, ViT, LoRA) it must hold all or nothing, and all when no
        other file of the config brings that part. LoRA that it does not hold starts afresh: stage 2 on a stage 1
        without it.

        Args:
            state: what the file holds, when it has been read already.
        """
        state = read_state(path) if state is None else state
        matrices = {name: t for name, t in state.items() if name.endswith(".lora_A.weight")}
        if matrices and not self.config.lora:
            layers = ", ".join(sorted({name.split(".")[-3] for name in matrices}))
            raise CheckpointError(
                f"{path} holds LoRA matrices, but model.lora is not set: write it as in training, e.g. lora: "
                f"{{r: {len(next(iter(matrices.values())))}, target_modules: [{layers}]}} and its alpha"
            )
        brought = {"llama_proj": None, "visual_encoder": self.config.vit_ckpt} | dict.fromkeys(
            ("ln_vision", "query_tokens", "Qformer"), self.config.q_former_model
        )
        parts = {part: (self.published_tensors([part]), source) for part, source in brought.items()}
        lora = {f"llama_model.{llm_name(name)}": p for name, p in lora_tensors(self.llama_model).items()}
        parts["llama_model"] = lora, self.config.llama_model
        targets, required = {}, set()
        for tensors, source in parts.values():
            targets |= tensors
            if source is None or any(name in tensors for name in state):
                required |= set(tensors)
        load_exact(targets, state, path, required=required, device=self.device)

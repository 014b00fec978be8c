"""The trained parts: the projection into the LLM, and LoRA inside the LLM.

A checkpoint names them `llama_proj.weight` (`llama_proj.0.weight`, `llama_proj.2.weight`, ... for several layers) and
`llama_model.<layer>.lora_A.weight`; peft's own files have `base_model.model.` in place of `llama_model.`.
"""

import logging
import re
import warnings

from torch import nn

from ..common.errors import ConfigError
from ..common.packages import require_packages
from ..common.schema import LoraConfig

ADAPTER = "default"  # peft's name for the one adapter; part of its parameter names


def create_projection(width: int, llm_width: int, layers: int) -> nn.Module:
    """(..., width) -> (..., llm_width): `layers` linear layers with GELU between. Source: MiniGPT-4's ablation with
    three, which does not name the activation; GELU is LLaVA-1.5's."""
    first = nn.Linear(width, llm_width)
    if layers == 1:
        return first
    more = [part for _ in range(layers - 1) for part in (nn.GELU(), nn.Linear(llm_width, llm_width))]
    return nn.Sequential(first, *more)


def add_lora(llm: nn.Module, lora: LoraConfig) -> None:
    """Add LoRA matrices to the layers of `llm` that `lora` names, in place. They are fp32, because a step of AdamW is
    lost in the rounding of bf16 weights. Raises ConfigError for layers that are not there or cannot be adapted."""
    require_packages("model.lora", "lora", "peft")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; see llm_loading.quantization_config
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    options = PeftLoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    names = [f".{name}" for name, _ in llm.named_modules()]
    if unknown := [t for t in lora.target_modules if not any(name.endswith(f".{t}") for name in names)]:
        known = sorted({name.rsplit(".", 1)[-1] for name, m in llm.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"model.lora.target_modules: {type(llm).__name__} has no layer called {', '.join(unknown)}; "
            f"it has {', '.join(known)}"
        )
    try:
        with warnings.catch_warnings():  # about merging into 8-bit layers, which is not done here
            warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass", category=UserWarning)
            inject_adapter_in_model(options, llm, ADAPTER)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.lora: peft cannot adapt these layers: {error}") from error
    for parameter in lora_tensors(llm).values():
        parameter.data = parameter.data.float()


def lora_tensors(llm: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA matrices by peft's parameter names; none without `add_lora`."""
    return {name: p for name, p in llm.named_parameters() if ".lora_" in name}


def llm_name(name: str) -> str:
    """A parameter's name in the LLM with LoRA -> its name in files: `q_proj.base_layer.weight` -> `q_proj.weight`,
    `q_proj.lora_A.default.weight` -> `q_proj.lora_A.weight`"""
    return re.sub(rf"\.(lora_\w+)\.{ADAPTER}\.", r".\1.", name).replace(".base_layer.", ".")


def set_lora_training(llm: nn.Module, mode: bool) -> None:
    """Turn the dropout before the LoRA matrices on or off; the LLM itself stays in eval mode."""
    for name, module in llm.named_modules():
        if name.endswith(".lora_dropout"):
            module.train(mode)

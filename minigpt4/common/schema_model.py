"""The keys of a config's `model` section."""

from dataclasses import dataclass, field
from typing import Literal

from .schema_keys import UNUSED, key


@dataclass(frozen=True)
class QFormerConfig:
    """model.qformer_kwargs; the defaults are BLIP-2's."""

    hidden_size: int = key(768, "Width D_q of the Q-Former.", least=1)
    num_hidden_layers: int = key(12, "Number of layers.", least=1)
    num_attention_heads: int = key(12, "Number of attention heads; hidden_size must be a multiple of it.", least=1)
    intermediate_size: int = key(3072, "Width of the feed-forward layers.", least=1)
    cross_attention_frequency: int = key(
        2, "Every n-th layer, from layer 0 on, has cross-attention to the image.", least=1
    )
    dropout: float = key(0.1, "Dropout while the Q-Former is trained (freeze_qformer: False).", least=0, below=1)


@dataclass(frozen=True)
class LoraConfig:
    """model.lora: small trained matrices beside the LLM's frozen ones (peft)."""

    r: int = key(8, "Rank of the LoRA matrices.", least=1)
    alpha: int = key(16, "Scale: the output of the LoRA matrices is multiplied by alpha / r.", least=1)
    dropout: float = key(0.05, "Dropout before the LoRA matrices, in training.", least=0, below=1)
    target_modules: list[str] = key(
        ["q_proj", "v_proj"], "Layers of the LLM that get LoRA, by the last part of their names."
    )


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section."""

    arch: str = key("mini_gpt4", "Name of the model class in the registry.")
    model_type: str = key("pretrain_vicuna", UNUSED)
    image_size: int = key(224, "Side of the square input image, in pixels.", least=1)
    vit_model: str = key("eva_clip_g", "Vision tower: eva_clip_g, or the name of a timm model.")
    vit_kwargs: dict = key({}, "Arguments of the timm model, e.g. {depth: 2, embed_dim: 64} for a small ViT.")
    vit_ckpt: str | None = key(
        None,
        "Weights of the ViT: eva_vit_g.pth, or safetensors with timm's names; null trains it from scratch.",
        path=True,
        url=True,
    )
    vit_precision: Literal["fp32", "fp16", "bf16"] = key(
        "fp16", "Dtype of the frozen ViT; on a CPU, a dtype that is slow there becomes fp32."
    )
    drop_path_rate: float = key(
        0.0, "Probability that a layer of the ViT is skipped, in training only (stochastic depth).", least=0, below=1
    )
    use_grad_checkpoint: bool = key(
        False, "Recompute the layers of the LLM, and of a trained ViT, in the backward pass: less memory, more time."
    )
    freeze_vit: bool = key(True, "Keep the ViT and ln_vision as they are; False trains them.")
    has_qformer: bool = key(True, "Use the Q-Former; False sends every ViT token straight to the projection.")
    freeze_qformer: bool = key(True, "Keep the Q-Former and query_tokens as they are; False trains them.")
    num_query_token: int = key(
        32, "Number Q of query tokens, which is the number of image tokens that the LLM reads.", least=1
    )
    q_former_model: str | None = key(
        None,
        "Weights of the Q-Former, query_tokens and ln_vision: blip2_pretrained_flant5xxl.pth, or a checkpoint. Without "
        "Q-Former only ln_vision is read; null keeps its initial weights.",
        path=True,
        url=True,
    )
    qformer_kwargs: QFormerConfig = field(default_factory=QFormerConfig, metadata={"doc": "size of the Q-Former"})
    proj_layers: int = key(1, "Number of linear layers of the projection, with GELU between them.", least=1)
    llama_model: str = key(
        "/path/to/vicuna/weights/", "The LLM: a folder in transformers' format, or a .gguf file.", path=True, url=True
    )
    llama_precision: Literal["auto", "fp32", "fp16", "bf16"] = key(
        "auto",
        "Dtype of the LLM; auto takes that of mixed precision in training, that of fp16 files in a chat on CUDA, else "
        "bf16 where the device computes it fast, else fp16 on CUDA and fp32 on a CPU.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = key(
        "auto",
        "Attention of the LLM; auto takes sdpa on CUDA and eager on CPU. flash_attention_2 needs flash-attn.",
    )
    low_resource: Literal[False, True, "8bit", "4bit"] = key(
        False,
        "Quantize the LLM: True or 8bit to 8 bit (CUDA: bitsandbytes, extra `gpu`; CPU: torchao), 4bit to NF4.",
    )
    device_map: Literal["auto"] | None = key(
        None, "auto spreads the LLM of a chat over all GPUs, then main memory, then disk; null uses one device."
    )
    max_memory: dict = key(
        {}, "With device_map, the most memory that each device takes, e.g. {0: 20GiB, 1: 20GiB, cpu: 60GiB}."
    )
    lora: LoraConfig | None = field(
        default=None, metadata={"doc": "LoRA matrices in the LLM; null leaves the LLM as it is."}
    )
    pad_token: str | None = key(
        None, "Padding token; null takes EOS, as the original, or another special token where EOS ends an answer."
    )
    prompt: str = key("", UNUSED)
    prompt_path: str | None = key(
        None,
        "File of instructions, one a line; one is drawn for each batch. null trains on captions alone.",
        path=True,
    )
    prompt_template: str | None = key(
        None, "Text around an instruction, {}, in training; null takes that of conv_template."
    )
    max_txt_len: int = key(32, "Longest text in training, in tokens; longer ones are cut.", least=1)
    end_sym: str | None = key(
        None,
        "Text after every training text; null takes conv_template's, or a newline where no prompt is set.",
    )
    conv_template: str = key(
        "vicuna_v0", "Template of a conversation: vicuna_v0, chatml, or auto for the chat template in the LLM's folder."
    )
    temperature: float = key(
        1.0,
        "Sampling temperature of a chat, unless its user sets another; lower values give more deterministic answers.",
        above=0,
    )
    repetition_penalty: float = key(
        1.0, "Divides the logits of tokens that were already generated; 1.0 turns it off.", above=0
    )
    ckpt: str | None = key(
        None,
        "Checkpoint with the trained weights, of this project or of the original; null starts from random weights.",
        path=True,
        url=True,
    )
    extra: dict = key({}, "Free keys for a model class of your own.")

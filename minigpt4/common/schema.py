"""Every key a config may hold, with its type, range, unit, default and meaning. `config.py` fills these in."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LIMITS = {"least": ("at least", operator.ge), "above": ("above", operator.gt), "most": ("at most", operator.le),
          "below": ("below", operator.lt)}  # fmt: skip


def key(default: Any, doc: str, *, path: bool = False, url: bool = False, **limits: float) -> Any:
    """A documented config key.

    Args:
        path: a file or folder that must exist.
        url: which may also be a URL.
        limits: the range of a number, or of each number of a list, by the names in LIMITS.
    """
    make = (
        {"default_factory": lambda: type(default)(default)}
        if isinstance(default, (dict, list))
        else {"default": default}
    )
    text = " and ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
    return field(metadata={"doc": doc, "path": path, "url": url, "limits": limits, "range": text}, **make)


def in_range(number: float, metadata: Mapping) -> bool:
    """Whether a key's `metadata` allows the number. NaN and infinity are never allowed."""
    return math.isfinite(number) and all(LIMITS[name][1](number, limit) for name, limit in metadata["limits"].items())


@dataclass(frozen=True)
class QFormerConfig:
    """model.qformer_kwargs; the defaults are BLIP-2's."""

    hidden_size: int = key(768, "width D_q", least=1)
    num_hidden_layers: int = key(12, "layers", least=1)
    num_attention_heads: int = key(12, "heads; must divide hidden_size", least=1)
    intermediate_size: int = key(3072, "width of the feed-forward layer", least=1)
    cross_attention_frequency: int = key(2, "every n-th layer, from layer 0, looks at the image", least=1)
    dropout: float = key(0.1, "dropout in training, when freeze_qformer is False", least=0, below=1)


@dataclass(frozen=True)
class LoraConfig:
    """model.lora: small trained matrices beside the LLM's frozen ones (peft)."""

    r: int = key(8, "rank: inner width of the matrices", least=1)
    alpha: int = key(16, "scale: what they add counts alpha / r", least=1)
    dropout: float = key(0.05, "dropout before them, in training", least=0, below=1)
    target_modules: list[str] = key(["q_proj", "v_proj"], "layers that get them, by the end of their names in the LLM")


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section."""

    arch: str = key("mini_gpt4", "registered model class")
    model_type: str = key("pretrain_vicuna", "the original's key; kept so that its configs open, not used")
    image_size: int = key(224, "side of the square input image, pixels", least=1)
    vit_model: str = key("eva_clip_g", "eva_clip_g, or any timm model name")
    vit_kwargs: dict = key({}, "arguments for timm's model, e.g. {depth: 2, embed_dim: 64} for a small ViT")
    vit_ckpt: str | None = key(
        None, "weights of the ViT (eva_vit_g.pth, or safetensors with timm's names)", path=True, url=True
    )
    vit_precision: Literal["fp32", "fp16", "bf16"] = key("fp16", "dtype of the ViT; fp16 becomes fp32 on CPU")
    drop_path_rate: float = key(0.0, "stochastic depth of the ViT, in training only", least=0, below=1)
    use_grad_checkpoint: bool = key(
        False, "recompute layers in backward, those of the LLM and of a trained ViT: less memory, more time"
    )
    freeze_vit: bool = key(True, "no gradient into the ViT and ln_vision")
    has_qformer: bool = key(True, "False: every ViT token goes straight to the projection, there are no queries")
    freeze_qformer: bool = key(True, "no gradient into the Q-Former and query_tokens")
    num_query_token: int = key(32, "queries Q: image tokens the LLM sees", least=1)
    q_former_model: str | None = key(
        None,
        "weights of the Q-Former, query_tokens and ln_vision (blip2_pretrained_flant5xxl.pth); "
        "without Q-Former only ln_vision is read, and null leaves it plain",
        path=True,
        url=True,
    )
    qformer_kwargs: QFormerConfig = field(default_factory=QFormerConfig, metadata={"doc": "size of the Q-Former"})
    proj_layers: int = key(1, "linear layers of the projection; with more than one, GELU stands between them", least=1)
    llama_model: str = key(
        "/path/to/vicuna/weights/", "folder of the LLM in transformers format, or a .gguf file", path=True, url=True
    )
    llama_precision: Literal["auto", "fp32", "fp16", "bf16"] = key(
        "auto",
        "dtype of the LLM; auto: that of mixed precision in training, that of fp16 files in chat on CUDA, else bf16 "
        "where the device computes it fast, else fp16 on CUDA and fp32 on CPU",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = key(
        "auto", "attention of the LLM; auto: sdpa on CUDA, eager on CPU; flash_attention_2 needs the package flash-attn"
    )
    low_resource: Literal[False, True, "8bit", "4bit"] = key(
        False, "True or 8bit: LLM in 8 bit (CUDA: bitsandbytes, extra `gpu`; CPU: torchao); 4bit: NF4, by bitsandbytes"
    )
    device_map: Literal["auto"] | None = key(
        None, "auto: in chat, spread the LLM over all GPUs, then main memory, then disk; null: one device"
    )
    max_memory: dict = key({}, "with device_map: the most each device takes, e.g. {0: 20GiB, 1: 20GiB, cpu: 60GiB}")
    lora: LoraConfig | None = field(default=None, metadata={"doc": "LoRA on the LLM; null: the LLM stays as it is"})
    pad_token: str | None = key(
        None, "padding token; null: the tokenizer's EOS, as in the original, or another where EOS ends an answer"
    )
    prompt: str = key("", "the original's key; kept so that its configs open, not used")
    prompt_path: str | None = key(None, "file of instructions, one a line; one is drawn for each batch", path=True)
    prompt_template: str | None = key(
        None, "what stands around an instruction in training; null: what conv_template says"
    )
    max_txt_len: int = key(32, "a text is cut to this many tokens", least=1)
    end_sym: str | None = key(
        None, "put after every text in training; null: what conv_template says, or a newline where no prompt is set"
    )
    conv_template: str = key(
        "vicuna_v0", "how a chat is written: vicuna_v0, chatml, or auto: the chat template in the LLM's own folder"
    )
    temperature: float = key(1.0, "of the chat, unless its user sets another; smaller is more sober", above=0)
    repetition_penalty: float = key(1.0, "of all answers: tokens said before lose by this factor; 1.0: none", above=0)
    ckpt: str | None = key(None, "a checkpoint of ours or of the original: the trained weights", path=True, url=True)
    extra: dict = key({}, "free keys for a model class of your own")


@dataclass(frozen=True)
class ProcessorConfig:
    """One image or text processor; keys left null take the processor's own default."""

    name: str = key("", "registered processor")
    image_size: int | None = key(None, "side of the square output, pixels", least=1)
    mean: list[float] | None = key(None, "mean of each channel, 0..1", least=0, most=1)
    std: list[float] | None = key(None, "standard deviation of each channel, 0..1", above=0)
    min_scale: float | None = key(None, "smallest share of the image's area a training crop keeps", above=0, most=1)
    max_scale: float | None = key(None, "largest share of the image's area a training crop keeps", above=0, most=1)
    flip: bool | None = key(None, "mirror half of the training images")
    prompt: str | None = key(None, "put before every caption")
    max_words: int | None = key(None, "words of a caption that are kept", least=1)
    extra: dict = key({}, "free keys for a processor of your own")

    def kwargs(self) -> dict:
        """The keys that were set, those of `extra` among them, without the name."""
        known = {k: v for k, v in vars(self).items() if k not in ("name", "extra") and v is not None}
        return known | self.extra


@dataclass(frozen=True)
class ProcessorsConfig:
    """A processor for training and one for evaluation."""

    train: ProcessorConfig | None = field(default=None, metadata={"doc": "in training (and in chat, as the original)"})
    eval: ProcessorConfig | None = field(default=None, metadata={"doc": "in evaluation"})


@dataclass(frozen=True)
class BuildInfo:
    """Where a dataset lies."""

    storage: str | list[str] | None = key(
        None, "shards: pattern, glob or list of them; else a folder or file", path=True
    )
    images: str | None = key(None, "folder of the images, where the dataset keeps them apart", path=True)
    cache: str | None = key(None, "folder that keeps remote shards once they were read; null: streamed each time")
    splits: list[str] | None = key(None, "which splits of the file to use; null: all")
    features: str | None = key(
        None, "of a list of pictures: a file.npy with what the frozen ViT makes of them; `minigpt4 features` writes it"
    )


@dataclass(frozen=True)
class DatasetConfig:
    """One entry of the `datasets` section."""

    builder: str | None = key(None, "registered dataset; null: the entry's own name")
    data_type: str = key("images", "the original's key; kept so that its configs open, not used")
    build_info: BuildInfo = field(default_factory=BuildInfo, metadata={"doc": "where it lies"})
    valid_info: BuildInfo | None = field(
        default=None, metadata={"doc": "what validation reads, as build_info: never trained on"}
    )
    vis_processor: ProcessorsConfig = field(
        default_factory=ProcessorsConfig,
        metadata={"doc": "image processors; null: BLIP-2's, with the ViT's own mean and std"},
    )
    text_processor: ProcessorsConfig = field(
        default_factory=ProcessorsConfig, metadata={"doc": "text processors; null: plain_text"}
    )
    prompt_path: str | None = key(None, "instructions for this dataset's batches, not model.prompt_path's", path=True)
    sample_ratio: float = key(
        1.0, "how often a batch is drawn from this dataset, against the others; 0: never", least=0
    )
    extra: dict = key({}, "free keys for a dataset of your own")

    def infos(self) -> list[tuple[str, BuildInfo]]:
        """Where its samples lie, those of validation too, each with its key."""
        return [(part, info) for part in ("build_info", "valid_info") if (info := getattr(self, part))]


@dataclass(frozen=True)
class RunConfig:
    """The `run` section."""

    import_modules: list[str] = key(
        [], "modules or .py files of your own, imported first; what they register can be named"
    )
    task: str = key("image_text_pretrain", "registered task")
    lr_sched: str = key("linear_warmup_cosine_lr", "registered schedule")
    init_lr: float = key(1e-4, "learning rate after the warm-up", above=0)
    min_lr: float = key(8e-5, "learning rate at the end", least=0)
    warmup_lr: float = key(1e-6, "learning rate at the start", least=0)
    warmup_steps: int = key(0, "optimizer steps of warm-up", least=0)
    optimizer: str = key("adamw", "registered optimizer")
    optimizer_kwargs: dict = key({}, "its other arguments, e.g. {betas: [0.9, 0.95]}; adamw: fused on CUDA")
    weight_decay: float = key(0.05, "weight decay of matrices; none for biases and norms", least=0)
    grad_clip: float | None = key(None, "largest gradient norm; null: no clipping, as the original", above=0)
    ema_decay: float | None = key(
        None,
        "keep the moving average of the trained weights, e.g. 0.99: validated and saved in their place",
        above=0,
        below=1,
    )
    max_epoch: int = key(1, "epochs; an epoch is iters_per_epoch steps", least=1)
    iters_per_epoch: int = key(1000, "optimizer steps in an epoch", least=1)
    batch_size_train: int = key(64, "samples in a batch, for each process", least=1)
    batch_size_eval: int = key(64, "samples in a batch of evaluation, for each process", least=1)
    accum_grad_iters: int = key(1, "batches whose gradients are averaged in one optimizer step", least=1)
    num_workers: int = key(4, "loader processes, for each process; 0: load in the process itself", least=0)
    seed: int = key(42, "the run is a function of the config and this", least=0, below=2**32)
    output_dir: str = key("output/run", "checkpoints, logs and plots go here, from the working directory")
    amp: bool = key(True, "mixed precision")
    amp_dtype: Literal["auto", "bf16", "fp16"] = key(
        "auto", "auto: bf16 where the device has it, else fp16 (CPU: none)"
    )
    device: str = key("auto", "cuda, cpu, or auto: cuda where there is one")
    resume: Literal["auto", "never"] = key("auto", "auto: go on from the newest checkpoint in output_dir")
    resume_ckpt_path: str | None = key(None, "go on from this checkpoint instead", path=True)
    save_every_steps: int | None = key(None, "checkpoint within an epoch, every n optimizer steps", least=1)
    save_every_minutes: float | None = key(None, "checkpoint within an epoch, every n minutes", above=0)
    keep_last: int = key(3, "how many checkpoints within epochs to keep; those at epoch ends all stay", least=1)
    log_freq: int = key(10, "optimizer steps between two lines of log.jsonl", least=1)
    max_bad_steps: int = key(
        10, "steps in a row with a loss or gradient that is not finite: skipped; one more stops", least=0
    )
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp", "over several processes: ddp, each holds the whole model; fsdp, the frozen LLM is parted among them"
    )
    compile: bool = key(False, "torch.compile each layer of the LLM and the ViT: slow first steps, faster ones after")
    deterministic: bool = key(False, "torch's deterministic kernels, on GPU too: slower, the same numbers each time")
    valid_every_steps: int | None = key(
        None, "optimizer steps between validations; null: at the end of each epoch", least=1
    )
    valid_samples: int = key(512, "samples of each valid_info a validation reads, over all processes", least=1)
    early_stop: int | None = key(
        None, "validations without a better loss after which the run ends; null: never", least=1
    )
    sample_images: list[str] = key([], "pictures whose description is written down as training goes on")
    sample_question: str = key("Describe this image in detail.", "what is asked about them")
    sample_every_steps: int | None = key(
        None, "optimizer steps between two such answers; null: at each epoch's end", least=1
    )
    report_to: list[str] = key([], "trackers beside log.jsonl and TensorBoard: wandb, trackio")
    max_bad_share: float = key(
        0.05, "training stops when more than this share of the samples read is bad", least=0, most=1
    )
    evaluate: bool = key(False, "the original's key; training only here, so it must be False")
    train_splits: list[str] = key(["train"], "the original's key; kept so that its configs open, not used")
    world_size: int = key(1, "the original's key; torchrun decides, not used", least=1)
    dist_url: str = key("env://", "the original's key; torchrun decides, not used")
    distributed: bool = key(True, "the original's key; torchrun decides, not used")


@dataclass(frozen=True)
class Config:
    """A whole config. `origin` says for each key where its value came from."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata={"doc": "the model"})
    datasets: dict[str, DatasetConfig] = field(default_factory=dict, metadata={"doc": "training data, by name"})
    run: RunConfig = field(default_factory=RunConfig, metadata={"doc": "the training run"})
    path: str = ""
    origin: dict[str, str] = field(default_factory=dict, repr=False)

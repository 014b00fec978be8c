"""Every key a config may hold, with its type, range, unit, default and meaning. `config.py` fills these in."""

# ruff: noqa: RUF009  (`key` and `section` return dataclass fields)
import math
import operator
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

UNUSED = "Not used; configs of the original have it."  # the text of such a key begins with this
LIMITS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def key(default: Any, doc: str, *, path: bool = False, url: bool = False, **limits: float) -> Any:
    """A documented config key.

    Args:
        path: a file or folder that must exist.
        url: which may also be a URL.
        limits: the range of a number, or of each number of a list, by the names in LIMITS.
    """
    text = " and ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
    metadata = {"doc": doc, "path": path, "url": url, "limits": limits, "range": text}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(default: type | None, doc: str) -> Any:
    """A section with keys of its own: its dataclass, or None where it may be left out."""
    return field(metadata={"doc": doc}, **({"default_factory": default} if default else {"default": None}))


def in_range(number: float, metadata: Mapping) -> bool:
    """Whether a key's `metadata` allows the number. NaN and infinity are never allowed."""
    return math.isfinite(number) and all(LIMITS[name][1](number, limit) for name, limit in metadata["limits"].items())


def meaning(metadata: Mapping) -> str:
    """The text of a key with its range, e.g. `Side of the square input image, in pixels (at least 1).`"""
    return metadata["doc"].removesuffix(".") + (f" ({metadata['range']})." if metadata.get("range") else ".")


# fmt: off
@dataclass(frozen=True)
class QFormerConfig:
    """model.qformer_kwargs; the defaults are BLIP-2's."""

    hidden_size: int = key(768, "Width D_q of the Q-Former.", least=1)
    num_hidden_layers: int = key(12, "Number of layers.", least=1)
    num_attention_heads: int = key(12, "Number of attention heads; hidden_size must be a multiple of it.", least=1)
    intermediate_size: int = key(3072, "Width of the feed-forward layers.", least=1)
    cross_attention_frequency: int = key(2, "Every n-th layer, from 0 on, cross-attends to the image.", least=1)
    dropout: float = key(0.1, "Dropout while the Q-Former is trained (freeze_qformer: False).", least=0, below=1)


@dataclass(frozen=True)
class LoraConfig:
    """model.lora: small trained matrices beside the LLM's frozen ones (peft)."""

    r: int = key(8, "Rank of the LoRA matrices.", least=1)
    alpha: int = key(16, "Scale: the output of the LoRA matrices is multiplied by alpha / r.", least=1)
    dropout: float = key(0.05, "Dropout before the LoRA matrices, in training.", least=0, below=1)
    target_modules: list[str] = key(["q_proj", "v_proj"], "Layers of the LLM with LoRA, by the last part of the name.")


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section."""

    arch: str = key("mini_gpt4", "Name of the model class in the registry.")
    model_type: str = key("pretrain_vicuna", UNUSED)
    image_size: int = key(224, "Side of the square input image, in pixels.", least=1)
    vit_model: str = key("eva_clip_g", "Vision tower: eva_clip_g, or the name of a timm model.")
    vit_kwargs: dict = key({}, "Arguments of the timm model, e.g. {depth: 2, embed_dim: 64} for a small ViT.")
    vit_ckpt: str | None = key(None, "Weights of the ViT: eva_vit_g.pth, or safetensors with timm's names; null trains "
                               "it from scratch.", path=True, url=True)
    vit_precision: Literal["fp32", "fp16", "bf16"] = key(
        "fp16", "Dtype of the frozen ViT; on a CPU, a dtype that is slow there becomes fp32.")
    drop_path_rate: float = key(0.0, "Stochastic depth: chance that training skips a ViT layer.", least=0, below=1)
    use_grad_checkpoint: bool = key(False, "Recompute layers of LLM and trained ViT in backward: less memory, slower.")
    freeze_vit: bool = key(True, "Keep the ViT and ln_vision as they are; False trains them.")
    has_qformer: bool = key(True, "Use the Q-Former; False sends every ViT token straight to the projection.")
    freeze_qformer: bool = key(True, "Keep the Q-Former and query_tokens as they are; False trains them.")
    num_query_token: int = key(32, "Number Q of query tokens, and of image tokens that the LLM reads.", least=1)
    q_former_model: str | None = key(
        None, "Weights of the Q-Former, query_tokens and ln_vision: blip2_pretrained_flant5xxl.pth, or a checkpoint. "
        "Without Q-Former only ln_vision is read; null keeps its initial weights.", path=True, url=True)
    qformer_kwargs: QFormerConfig = section(QFormerConfig, "size of the Q-Former")
    proj_layers: int = key(1, "Number of linear layers of the projection, with GELU between them.", least=1)
    llama_model: str = key("/path/to/vicuna/weights/", "The LLM: a folder in transformers' format, or a .gguf file.",
                           path=True, url=True)
    llama_precision: Literal["auto", "fp32", "fp16", "bf16"] = key(
        "auto", "Dtype of the LLM; auto takes that of mixed precision in training, that of fp16 files in a chat on "
        "CUDA, else bf16 where the device computes it fast, else fp16 on CUDA and fp32 on a CPU.")
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = key(
        "auto", "Attention of the LLM; auto takes sdpa on CUDA and eager on CPU. flash_attention_2 needs flash-attn.")
    low_resource: Literal[False, True, "8bit", "4bit"] = key(
        False, "Quantize the LLM: True or 8bit to 8 bit (CUDA: bitsandbytes, extra `gpu`; CPU: torchao), 4bit to NF4.")
    device_map: Literal["auto"] | None = key(
        None, "auto spreads the LLM of a chat over all GPUs, then main memory, then disk; null uses one device.")
    max_memory: dict = key(
        {}, "With device_map, the most memory that each device takes, e.g. {0: 20GiB, 1: 20GiB, cpu: 60GiB}.")
    lora: LoraConfig | None = section(None, "LoRA matrices in the LLM; null leaves the LLM as it is.")
    pad_token: str | None = key(
        None, "Padding token; null takes EOS, as the original, or another special token where EOS ends an answer.")
    prompt: str = key("", UNUSED)
    prompt_path: str | None = key(None, "File of instructions, one a line; one is drawn for each batch. null trains on "
                                  "captions alone.", path=True)
    prompt_template: str | None = key(None, "Text around an instruction, {}; null takes that of conv_template.")
    max_txt_len: int = key(32, "Longest text in training, in tokens; longer ones are cut.", least=1)
    end_sym: str | None = key(None, "Text after every training text; null takes conv_template's, or a newline where no "
                              "prompt is set.")
    conv_template: str = key("vicuna_v0", "Chat template: vicuna_v0, chatml, or auto for that in the LLM's folder.")
    temperature: float = key(1.0, "Sampling temperature of a chat; lower gives more deterministic answers.", above=0)
    repetition_penalty: float = key(1.0, "Divides the logits of tokens already generated; 1.0 turns it off.", above=0)
    example_questions: list[str] | None = key(None, "Questions that the chat page offers; null offers the paper's.")
    ckpt: str | None = key(None, "Checkpoint with the trained weights, of this project or of the original; null starts "
                           "from random weights.", path=True, url=True)
    extra: dict = key({}, "Free keys for a model class of your own.")


@dataclass(frozen=True)
class ProcessorConfig:
    """One image or text processor; keys left null take the processor's own default."""

    name: str = key("", "Name of the processor in the registry.")
    image_size: int | None = key(None, "Side of the square output image, in pixels.", least=1)
    mean: list[float] | None = key(None, "Mean of each colour channel, of pixels from 0 to 1.", least=0, most=1)
    std: list[float] | None = key(None, "Standard deviation of each colour channel, of pixels from 0 to 1.", above=0)
    min_scale: float | None = key(None, "Smallest fraction of the area that a training crop keeps.", above=0, most=1)
    max_scale: float | None = key(None, "Largest fraction of the area that a training crop keeps.", above=0, most=1)
    flip: bool | None = key(None, "Mirror half of the training images, at random.")
    scaled_jpeg: bool | None = key(None, "Decode large JPEGs at a reduced scale, from which no crop is enlarged; "
                                   "pixels and the drawn crops differ.")
    prompt: str | None = key(None, "Text before every caption.")
    max_words: int | None = key(None, "Longest caption, in words; longer ones are cut.", least=1)
    extra: dict = key({}, "Free keys for a processor of your own.")

    def kwargs(self) -> dict:
        """The keys that were set, those of `extra` among them, without the name."""
        known = {k: v for k, v in vars(self).items() if k not in ("name", "extra") and v is not None}
        return known | self.extra


@dataclass(frozen=True)
class ProcessorsConfig:
    """A processor for training and one for evaluation."""

    train: ProcessorConfig | None = section(None, "The processor in training.")
    eval: ProcessorConfig | None = section(None, "The processor in evaluation, and of images in a chat.")


@dataclass(frozen=True)
class BuildInfo:
    """Where a dataset lies."""

    storage: str | list[str] | None = key(
        None, "Shards (a pattern, a glob or a list of them), or the folder or file of another dataset.", path=True)
    images: str | None = key(None, "Folder of the images, where it is not that of the texts.", path=True)
    cache: str | None = key(None, "Folder that keeps remote shards once read; null streams them each time.")
    splits: list[str] | None = key(None, "Splits of the file to use; null uses all")
    features: str | None = key(None, "Features of the pictures, from `minigpt4 features`; the ViT then does not run.")


@dataclass(frozen=True)
class DatasetConfig:
    """One entry of the `datasets` section."""

    builder: str | None = key(None, "Name of the dataset class in the registry; null takes the name of the entry.")
    data_type: str = key("images", UNUSED)
    build_info: BuildInfo = section(BuildInfo, "where it lies")
    valid_info: BuildInfo | None = section(None, "Data for validation, with the keys of build_info; never trained on.")
    vis_processor: ProcessorsConfig = section(
        ProcessorsConfig, "Image processors; null takes BLIP-2's, with the mean and std of the ViT.")
    text_processor: ProcessorsConfig = section(ProcessorsConfig, "Text processors; null takes plain_text.")
    prompt_path: str | None = key(None, "Instructions for this dataset; null takes model.prompt_path.", path=True)
    sample_ratio: float = key(1.0, "Weight of this dataset when a batch is drawn from one; 0 never draws it.", least=0)
    extra: dict = key({}, "Free keys for a dataset of your own.")

    def infos(self) -> list[tuple[str, BuildInfo]]:
        """Where its samples lie, those of validation too, each with its key."""
        return [(part, info) for part in ("build_info", "valid_info") if (info := getattr(self, part))]


@dataclass(frozen=True)
class RunConfig:
    """The `run` section."""

    import_modules: list[str] = key([], "Your own modules or .py files; the config can name what they register.")
    task: str = key("image_text_pretrain", "Name of the task in the registry.")
    lr_sched: str = key("linear_warmup_cosine_lr", "Name of the learning rate schedule in the registry.")
    init_lr: float = key(1e-4, "Learning rate after the warm-up.", above=0)
    min_lr: float = key(8e-5, "Learning rate at the end of the run.", least=0)
    warmup_lr: float = key(1e-6, "Learning rate at the start of the warm-up.", least=0)
    warmup_steps: int = key(0, "Length of the warm-up, in optimizer steps.", least=0)
    optimizer: str = key("adamw", "adamw, sgd, or a name that a file of run.import_modules registers.")
    optimizer_kwargs: dict = key({}, "Other arguments of the optimizer, e.g. {betas: [0.9, 0.95]}.")
    weight_decay: float = key(0.05, "Weight decay of matrices, for any optimizer; biases and norms have none.", least=0)
    grad_clip: float | None = key(None, "Clip the gradient to this norm; null does not clip, as the original.", above=0)
    ema_decay: float | None = key(None, "Decay of a moving average of the trained weights, which is validated and "
                                  "saved instead of them, e.g. 0.99.", above=0, below=1)
    max_epoch: int = key(1, "Number of epochs of iters_per_epoch steps each.", least=1)
    iters_per_epoch: int = key(1000, "Optimizer steps in an epoch.", least=1)
    batch_size_train: int = key(64, "Samples in a training batch of each process.", least=1)
    batch_size_eval: int = key(64, "Samples in a validation batch of each process.", least=1)
    accum_grad_iters: int = key(1, "Number of batches whose gradients are averaged in one optimizer step.", least=1)
    num_workers: int = key(4, "Loader processes of each training process; 0 loads in the training process.", least=0)
    seed: int = key(42, "Seed of all random numbers; the same config and seed give the same run.", least=0, below=2**32)
    output_dir: str = key("output/run", "Folder for checkpoints, logs and plots, relative to the working directory.")
    amp: bool = key(True, "Train in mixed precision.")
    amp_dtype: Literal["auto", "bf16", "fp16"] = key(
        "auto",
        "Dtype of mixed precision; auto takes bf16 where the device computes it fast, else fp16, and none on a CPU.")
    device: str = key("auto", "Device: cuda, cpu, or auto for cuda where there is one.")
    resume: Literal["auto", "never"] = key("auto", "auto continues from the newest checkpoint; never starts anew.")
    resume_ckpt_path: str | None = key(None, "Checkpoint to continue from, instead of output_dir's newest.", path=True)
    save_every_steps: int | None = key(None, "Steps between checkpoints within an epoch; null writes none.", least=1)
    save_every_minutes: float | None = key(None, "Minutes between checkpoints within an epoch; null: none.", above=0)
    keep_last: int = key(3, "Number of checkpoints within epochs to keep; those of whole epochs are all kept.", least=1)
    log_freq: int = key(10, "Optimizer steps between two lines of log.jsonl.", least=1)
    max_bad_steps: int = key(10, "Most steps in a row skipped for NaN or infinity; one more ends the run.", least=0)
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp", "With several processes: ddp gives each the whole model, fsdp shards the frozen LLM over them.")
    compile: Literal["auto", True, False] = key(
        False, "torch.compile each layer of the LLM and the ViT: the first step takes half a minute or more, later "
        "ones are faster. auto does so on a CPU that has a C++ compiler.")
    deterministic: bool = key(False, "Use deterministic kernels: slower, but a GPU gives the same numbers each time.")
    valid_every_steps: int | None = key(None, "Steps between validations; null: at the end of each epoch.", least=1)
    valid_samples: int = key(512, "Samples of each valid_info that a validation reads, over all processes.", least=1)
    early_stop: int | None = key(None, "Stop after this many validations without a lower loss; null: never.", least=1)
    sample_images: list[str] = key([], "Pictures that the model describes in the course of training.")
    sample_question: str = key("Describe this image in detail.", "Question about the sample_images.")
    sample_every_steps: int | None = key(None, "Steps between answers about sample_images; null: every epoch.", least=1)
    report_to: list[str] = key([], "Trackers that log the run beside log.jsonl and TensorBoard: wandb, trackio.")
    max_bad_share: float = key(0.05, "Largest fraction of bad samples; the run stops above it.", least=0, most=1)
    evaluate: bool = key(False, f"{UNUSED} It must be False, as there is no run without training.")
    train_splits: list[str] = key(["train"], UNUSED)
    world_size: int = key(1, f"{UNUSED} torchrun decides.", least=1)
    dist_url: str = key("env://", f"{UNUSED} torchrun decides.")
    distributed: bool = key(True, f"{UNUSED} torchrun decides.")


@dataclass(frozen=True)
class Config:
    """A whole config. `origin` says for each key where its value came from."""

    model: ModelConfig = section(ModelConfig, "the model")
    datasets: dict[str, DatasetConfig] = section(dict, "training data, by name")
    run: RunConfig = section(RunConfig, "the training run")
    path: str = ""
    origin: dict[str, str] = field(default_factory=dict, repr=False)

    def plain(self) -> dict[str, dict]:
        """model, datasets and run as plain values, as checkpoints hold them."""
        return {name: values for name, values in asdict(self).items() if name in ("model", "datasets", "run")}

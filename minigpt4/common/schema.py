"""Every key a config may hold, with its type, range, unit, default and meaning. `config.py` fills these in."""

from dataclasses import dataclass, field
from typing import Literal

from .schema_keys import UNUSED, key
from .schema_keys import in_range as in_range
from .schema_model import LoraConfig as LoraConfig
from .schema_model import ModelConfig
from .schema_model import QFormerConfig as QFormerConfig


@dataclass(frozen=True)
class ProcessorConfig:
    """One image or text processor; keys left null take the processor's own default."""

    name: str = key("", "Name of the processor in the registry.")
    image_size: int | None = key(None, "Side of the square output image, in pixels.", least=1)
    mean: list[float] | None = key(None, "Mean of each colour channel, of pixels from 0 to 1.", least=0, most=1)
    std: list[float] | None = key(None, "Standard deviation of each colour channel, of pixels from 0 to 1.", above=0)
    min_scale: float | None = key(
        None, "Smallest fraction of the image's area that a training crop keeps.", above=0, most=1
    )
    max_scale: float | None = key(
        None, "Largest fraction of the image's area that a training crop keeps.", above=0, most=1
    )
    flip: bool | None = key(None, "Mirror half of the training images, at random.")
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

    train: ProcessorConfig | None = field(default=None, metadata={"doc": "The processor in training."})
    eval: ProcessorConfig | None = field(
        default=None, metadata={"doc": "The processor in evaluation, and of images in a chat."}
    )


@dataclass(frozen=True)
class BuildInfo:
    """Where a dataset lies."""

    storage: str | list[str] | None = key(
        None, "Shards (a pattern, a glob or a list of them), or the folder or file of another dataset.", path=True
    )
    images: str | None = key(
        None, "Folder of the images, for a dataset that keeps them apart from its texts.", path=True
    )
    cache: str | None = key(
        None, "Folder that keeps remote shards after their first reading; null streams them each time."
    )
    splits: list[str] | None = key(None, "Splits of the file to use; null uses all")
    features: str | None = key(
        None,
        "Features of the pictures, a file.npy that `minigpt4 features` writes; the ViT then does not run",
    )


@dataclass(frozen=True)
class DatasetConfig:
    """One entry of the `datasets` section."""

    builder: str | None = key(None, "Name of the dataset class in the registry; null takes the name of the entry.")
    data_type: str = key("images", UNUSED)
    build_info: BuildInfo = field(default_factory=BuildInfo, metadata={"doc": "where it lies"})
    valid_info: BuildInfo | None = field(
        default=None, metadata={"doc": "Data for validation, with the keys of build_info; they are never trained on."}
    )
    vis_processor: ProcessorsConfig = field(
        default_factory=ProcessorsConfig,
        metadata={"doc": "Image processors; null takes BLIP-2's, with the mean and std of the ViT."},
    )
    text_processor: ProcessorsConfig = field(
        default_factory=ProcessorsConfig, metadata={"doc": "Text processors; null takes plain_text."}
    )
    prompt_path: str | None = key(
        None, "File of instructions for the batches of this dataset, instead of model.prompt_path.", path=True
    )
    sample_ratio: float = key(
        1.0, "Weight of this dataset when the next batch is drawn from one of them; 0 never draws it.", least=0
    )
    extra: dict = key({}, "Free keys for a dataset of your own.")

    def infos(self) -> list[tuple[str, BuildInfo]]:
        """Where its samples lie, those of validation too, each with its key."""
        return [(part, info) for part in ("build_info", "valid_info") if (info := getattr(self, part))]


@dataclass(frozen=True)
class RunConfig:
    """The `run` section."""

    import_modules: list[str] = key(
        [], "Modules or .py files of your own that are imported first; the config can then name what they register."
    )
    task: str = key("image_text_pretrain", "Name of the task in the registry.")
    lr_sched: str = key("linear_warmup_cosine_lr", "Name of the learning rate schedule in the registry.")
    init_lr: float = key(1e-4, "Learning rate after the warm-up.", above=0)
    min_lr: float = key(8e-5, "Learning rate at the end of the run.", least=0)
    warmup_lr: float = key(1e-6, "Learning rate at the start of the warm-up.", least=0)
    warmup_steps: int = key(0, "Length of the warm-up, in optimizer steps.", least=0)
    optimizer: str = key("adamw", "Name of the optimizer in the registry.")
    optimizer_kwargs: dict = key({}, "Other arguments of the optimizer, e.g. {betas: [0.9, 0.95]}.")
    weight_decay: float = key(0.05, "Weight decay of matrices; biases and norms have none.", least=0)
    grad_clip: float | None = key(None, "Clip the gradient to this norm; null does not clip, as the original.", above=0)
    ema_decay: float | None = key(
        None,
        "Decay of a moving average of the trained weights, which is validated and saved instead of them, e.g. 0.99.",
        above=0,
        below=1,
    )
    max_epoch: int = key(1, "Number of epochs of iters_per_epoch steps each.", least=1)
    iters_per_epoch: int = key(1000, "Optimizer steps in an epoch.", least=1)
    batch_size_train: int = key(64, "Samples in a training batch of each process.", least=1)
    batch_size_eval: int = key(64, "Samples in a validation batch of each process.", least=1)
    accum_grad_iters: int = key(1, "Number of batches whose gradients are averaged in one optimizer step.", least=1)
    num_workers: int = key(
        4, "Data loading processes for each training process; 0 loads in the training process.", least=0
    )
    seed: int = key(42, "Seed of all random numbers; the same config and seed give the same run.", least=0, below=2**32)
    output_dir: str = key("output/run", "Folder for checkpoints, logs and plots, relative to the working directory.")
    amp: bool = key(True, "Train in mixed precision.")
    amp_dtype: Literal["auto", "bf16", "fp16"] = key(
        "auto",
        "Dtype of mixed precision; auto takes bf16 where the device computes it fast, else fp16, and none on a CPU.",
    )
    device: str = key("auto", "Device: cuda, cpu, or auto for cuda where there is one.")
    resume: Literal["auto", "never"] = key(
        "auto", "auto continues from the newest checkpoint in output_dir; never starts anew."
    )
    resume_ckpt_path: str | None = key(
        None, "Checkpoint to continue from, instead of the newest in output_dir.", path=True
    )
    save_every_steps: int | None = key(
        None, "Optimizer steps between checkpoints within an epoch; null writes none.", least=1
    )
    save_every_minutes: float | None = key(
        None, "Minutes between checkpoints within an epoch; null writes none.", above=0
    )
    keep_last: int = key(
        3, "Number of checkpoints within epochs to keep; those at the end of an epoch are all kept.", least=1
    )
    log_freq: int = key(10, "Optimizer steps between two lines of log.jsonl.", least=1)
    max_bad_steps: int = key(
        10,
        "Most steps in a row that are skipped because their loss or gradient is not finite; one more stops the run.",
        least=0,
    )
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp", "With several processes: ddp gives each the whole model, fsdp shards the frozen LLM over them."
    )
    compile: bool = key(
        False, "Compile each layer of the LLM and the ViT with torch.compile: slow first steps, faster ones after."
    )
    deterministic: bool = key(
        False, "Use deterministic kernels: slower, but a GPU computes the same numbers each time."
    )
    valid_every_steps: int | None = key(
        None, "Optimizer steps between validations; null validates at the end of each epoch.", least=1
    )
    valid_samples: int = key(512, "Samples of each valid_info that a validation reads, over all processes.", least=1)
    early_stop: int | None = key(
        None, "End the run after this many validations without a lower loss; null never does.", least=1
    )
    sample_images: list[str] = key([], "Pictures that the model describes in the course of training.")
    sample_question: str = key("Describe this image in detail.", "Question about the sample_images.")
    sample_every_steps: int | None = key(
        None,
        "Optimizer steps between descriptions of the sample_images; null describes them at the end of each epoch.",
        least=1,
    )
    report_to: list[str] = key([], "Trackers that log the run beside log.jsonl and TensorBoard: wandb, trackio.")
    max_bad_share: float = key(
        0.05, "Largest fraction of the samples read that may be bad; the run stops above it.", least=0, most=1
    )
    evaluate: bool = key(False, f"{UNUSED} It must be False, as there is no run without training.")
    train_splits: list[str] = key(["train"], UNUSED)
    world_size: int = key(1, f"{UNUSED} torchrun decides.", least=1)
    dist_url: str = key("env://", f"{UNUSED} torchrun decides.")
    distributed: bool = key(True, f"{UNUSED} torchrun decides.")


@dataclass(frozen=True)
class Config:
    """A whole config. `origin` says for each key where its value came from."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata={"doc": "the model"})
    datasets: dict[str, DatasetConfig] = field(default_factory=dict, metadata={"doc": "training data, by name"})
    run: RunConfig = field(default_factory=RunConfig, metadata={"doc": "the training run"})
    path: str = ""
    origin: dict[str, str] = field(default_factory=dict, repr=False)

"""Training on image-text pairs, with or without a prompt around the image: both stages of MiniGPT-4."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import datasets, models, processors  # noqa: F401  (fills the registries)
from ..common import optims  # noqa: F401  (fills two more)
from ..common.dist_utils import world_size
from ..common.errors import DataError
from ..common.logger import log
from ..common.paths import resolve_path
from ..common.precision import resolve_precision
from ..common.registry import DATASETS, MODELS, PROCESSORS, TASKS
from ..common.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig
from ..conversation.chat import Chat
from ..datasets.features import FeatureTable, made_from
from ..datasets.image_text import ImageTextSource
from ..datasets.stream import MixedLoader, SampleStream, Source, collate, make_loader
from ..models.prompting import read_prompts


def build_model(config: ModelConfig, device: torch.device | str = "cpu", **options) -> nn.Module:
    """The model that `model.arch` names, with its weights. `options` are arguments of that class."""
    return MODELS.get(config.arch)(config, device, **options)


def build_processor(config: ProcessorConfig):
    """The image or text processor that the config names."""
    return PROCESSORS.get(config.name)(**config.kwargs())


def default_vis_processor(model: ModelConfig, split: str) -> ProcessorConfig:
    """BLIP-2's image processor, with the mean and std that a timm ViT was trained with."""
    import timm  # here, because it takes seconds: it loads torchvision's models and torch._dynamo

    known = timm.models.get_pretrained_cfg(model.vit_model, allow_unregistered=True)
    own = {"mean": list(known.mean), "std": list(known.std)} if known else {}
    return ProcessorConfig(name=f"blip2_image_{split}", image_size=model.image_size, **own)


def chat_processor(config: Config):
    """The chat's, as in the original: the `train` processor of the config's first dataset, without the random crop."""
    named = [d.vis_processor.train for d in config.datasets.values() if d.vis_processor.train]
    chosen = named[0] if named else default_vis_processor(config.model, "eval")
    name, kwargs = chosen.name, {"image_size": config.model.image_size} | chosen.kwargs()
    if name == "blip2_image_train":
        name, kwargs = "blip2_image_eval", {k: kwargs[k] for k in ("image_size", "mean", "std") if k in kwargs}
    return PROCESSORS.get(name)(**kwargs)


def chat_with(model: nn.Module, config: Config) -> Chat:
    """A chat with the processor, template and decoding of the config."""
    settings = config.model
    return Chat(
        model, chat_processor(config), settings.conv_template,
        temperature=settings.temperature, repetition_penalty=settings.repetition_penalty,
    )  # fmt: skip


def build_source(name: str, dataset: DatasetConfig, split: str, model: ModelConfig) -> Source:
    """The dataset with its processors for `split` (train or eval): the config's, or `plain_text` and BLIP-2's."""
    see, read = (getattr(p, split) or p.train for p in (dataset.vis_processor, dataset.text_processor))
    chosen = see or default_vis_processor(model, split), read or ProcessorConfig(name="plain_text")
    return DATASETS.get(dataset.builder or name)(dataset, *map(build_processor, chosen))


@contextlib.contextmanager
def add_config_key_to_errors(key: str) -> Iterator[None]:
    """Put the config key in front of each DataError that the block raises."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from None


@TASKS.register("image_text_pretrain")
class ImageTextPretrain:
    """The task of both stages. A subclass may replace `source_of`; `collate`, which makes a batch in the loader's
    processes; and `build_batch`. Raises DataError for wrong data files, before weights are read."""

    collate = staticmethod(collate)

    def __init__(self, config: Config):
        self.config = config
        self.sources, self.valid_sources, problems = {}, {}, []
        for name, dataset in config.datasets.items():
            for part, info in dataset.infos():
                split, sources = ("train", self.sources) if part == "build_info" else ("eval", self.valid_sources)
                if split == "train" and not dataset.sample_ratio:
                    continue
                try:
                    there = dataclasses.replace(dataset, build_info=info)
                    sources[name] = self.source_of(name, there, split, f"datasets.{name}.{part}")
                except DataError as error:
                    problems.append(str(error))
        if problems:
            raise DataError("\n  ".join([f"{config.path}: the data cannot be used", *problems]))
        template = config.model.prompt_template or "{}"
        self.prompts = {
            name: read_prompts(dataset.prompt_path, template, f"datasets.{name}.prompt_path")
            for name, dataset in config.datasets.items()
            if dataset.prompt_path
        }

    def source_of(self, name: str, dataset: DatasetConfig, split: str, where: str) -> Source:
        """The samples of a dataset for `split`, train or eval; for eval, its build_info is the config's valid_info.
        `where` is the config key of that, for messages."""
        with add_config_key_to_errors(f"{where}.storage"):
            source = build_source(name, dataset, split, self.config.model)
        if dataset.build_info.features:
            with add_config_key_to_errors(f"{where}.features"):
                if not isinstance(source, ImageTextSource):
                    raise DataError(f"is for lists of pictures, not for {dataset.builder or name}; leave it out")
                file = Path(resolve_path(dataset.build_info.features))
                facts = made_from(self.config.model, dataset.vis_processor, source.pairs)
                random_crop = split == "train" or dataset.vis_processor.eval is None
                source.features = FeatureTable(source.pairs, file, facts, random_crop)
        return source

    def build_model(self, device: torch.device | str) -> nn.Module:
        """The config's model. Prompts of datasets get its prompt template, which conv_template may decide."""
        config, device = self.config, torch.device(device)
        # With FSDP, each process gets its shards of an LLM that may be too large for one GPU.
        sharded = config.run.parallel == "fsdp" and world_size() > 1
        precision = resolve_precision(config.model, device, config.run)
        log.info("precision: %s", precision)
        model = build_model(config.model, device, precision=precision, llm_apart=sharded)
        if self.prompts and config.model.prompt_template is None:
            template = model.config.prompt_template
            self.prompts = {n: [template.replace("{}", p) for p in prompts] for n, prompts in self.prompts.items()}
        return model

    def build_loader(self, rank: int, world_size: int, seed: int, drawn: int = 0) -> MixedLoader:
        """Endless batches for this process, mixed over the datasets by `sample_ratio`. `drawn`: see `MixedLoader`."""
        run, loaders = self.config.run, {}
        for name, source in self.sources.items():
            stream = SampleStream(source, name, seed, rank, world_size)
            loaders[name] = make_loader(stream, run.batch_size_train, run.num_workers, self.collate)
        ratios = {name: dataset.sample_ratio for name, dataset in self.config.datasets.items()}
        return MixedLoader(loaders, ratios, seed, rank, drawn)

    def validation_batches(self, rank: int, world_size: int) -> Iterator[dict]:
        """This process's share of the first `run.valid_samples` of each dataset's `valid_info`, the same each time.
        Raises DataError when none of them can be read."""
        run = self.config.run
        for name, source in self.valid_sources.items():
            count = min(run.valid_samples, len(source)) if hasattr(source, "__len__") else run.valid_samples
            stream = iter(SampleStream(source, name, 0, rank, world_size))
            for left in range(max(count // world_size, 1), 0, -run.batch_size_eval):
                batch = self.collate(list(itertools.islice(stream, min(left, run.batch_size_eval))))
                if batch["hopeless"]:
                    where, why = batch["bad"][0]
                    raise DataError(f"datasets.{name}.valid_info: no sample can be read, e.g. {where} ({why})")
                yield {**batch, "dataset": name}

    def sample_answers(self, model: nn.Module, max_new_tokens: int = 60) -> list[dict]:
        """The model's greedy answers about run.sample_images: [{"image", "answer"}]."""
        run = self.config.run
        files = [resolve_path(image) for image in run.sample_images]
        try:
            chat = chat_with(model, self.config)
            answers = chat.answer_batch(files, run.sample_question, do_sample=False, max_new_tokens=max_new_tokens)
        finally:
            model.train()
        return [{"image": i, "answer": a} for i, a in zip(run.sample_images, answers, strict=True)]

    def build_batch(self, model: nn.Module, samples: dict) -> dict:
        """Collated samples -> the input of the model's forward, on the CPU, with the dataset's own prompts."""
        prompts = self.prompts.get(samples.get("dataset"))
        return model.build_batch({**samples, "prompts": prompts} if prompts else samples)

    def train_step(self, model: nn.Module, batch: dict) -> Tensor:
        """The loss, a scalar, of what `build_batch` returned."""
        return model(batch)["loss"]

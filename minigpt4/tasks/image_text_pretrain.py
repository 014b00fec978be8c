"""Training on image-text pairs, with or without a prompt around the image: both stages of MiniGPT-4."""

import torch
from torch import Tensor, nn

from .. import datasets, models, processors  # noqa: F401  (fills the registries)
from ..common.errors import DataError
from ..common.registry import DATASETS, MODELS, PROCESSORS, TASKS
from ..common.schema import Config, ModelConfig, ProcessorConfig
from ..datasets.stream import MixedLoader, SampleStream, make_loader
from ..models.mini_gpt4 import read_prompts


def build_model(config: ModelConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The model that `model.arch` names, with its weights, on `device`."""
    return MODELS.get(config.arch)(config, device)


def build_processor(config: ProcessorConfig):
    """The image or text processor that the config names."""
    return PROCESSORS.get(config.name)(**config.kwargs())


@TASKS.register("image_text_pretrain")
class ImageTextPretrain:
    """The loss of a batch is the model's loss on it.

    Raises:
        DataError: a dataset's files are not as they should be; said here, before a weight is read.
    """

    def __init__(self, config: Config):
        self.config = config
        self.sources, problems = {}, []
        for name, dataset in config.datasets.items():
            try:
                self.sources[name] = DATASETS.get(dataset.builder or name)(
                    dataset,
                    build_processor(dataset.vis_processor.train),
                    build_processor(dataset.text_processor.train),
                )
            except DataError as error:
                problems.append(f"datasets.{name}.build_info.storage: {error}")
        if problems:
            raise DataError("\n  ".join([f"{config.path}: the data cannot be used", *problems]))
        self.prompts = {
            name: read_prompts(dataset.prompt_path, config.model.prompt_template, f"datasets.{name}.prompt_path")
            for name, dataset in config.datasets.items()
            if dataset.prompt_path
        }

    def build_model(self, device: torch.device | str) -> nn.Module:
        return build_model(self.config.model, device)

    def build_loader(self, rank: int, world_size: int, seed: int) -> MixedLoader:
        """Endless batches for this process, mixed over the datasets by `sample_ratio`."""
        run, loaders = self.config.run, {}
        for name, source in self.sources.items():
            stream = SampleStream(source, name, seed, rank, world_size)
            loaders[name] = make_loader(stream, run.batch_size_train, run.num_workers)
        ratios = {name: dataset.sample_ratio for name, dataset in self.config.datasets.items()}
        return MixedLoader(loaders, ratios, seed, rank)

    def train_step(self, model: nn.Module, batch: dict) -> Tensor:
        """The loss, a scalar. A dataset with instructions of its own is asked by these."""
        prompts = self.prompts.get(batch.get("dataset"))
        return model({**batch, "prompts": prompts} if prompts else batch)["loss"]

"""A dataset's name in the config -> a function (DatasetConfig, vis_processor, text_processor) -> Source."""

from collections.abc import Callable

from ...common.paths import expand_shards, resolve_path
from ...common.registry import DATASETS
from ...common.schema import DatasetConfig
from ..image_text import ImageTextSource, read_filter_cap, read_photos
from ..shards import ShardSource
from ..stream import Source


@DATASETS.register("cc_sbu")  # these two: the names in the original's configs
@DATASETS.register("laion")
@DATASETS.register("webdataset")
def image_text_shards(config: DatasetConfig, vis_processor: Callable, text_processor: Callable) -> Source:
    """Stage 1: img2dataset shards (`build_info.storage`: pattern, glob or list of them)."""
    info = config.build_info
    return ShardSource(expand_shards(info.storage), vis_processor, text_processor, info.cache)


@DATASETS.register("cc_sbu_align")
def detailed_descriptions(config: DatasetConfig, vis_processor: Callable, text_processor: Callable) -> Source:
    """Stage 2: a folder with filter_cap.json and image/. The text processor is not used, as in the original."""
    return ImageTextSource(read_filter_cap(resolve_path(config.build_info.storage)), vis_processor, str.strip)


@DATASETS.register("captioned_photos")
def captioned_photos(config: DatasetConfig, vis_processor: Callable, text_processor: Callable) -> Source:
    """JSON lines with one or more captions a photo."""
    info = config.build_info
    pairs = read_photos(resolve_path(info.storage), info.images, info.splits)
    return ImageTextSource(pairs, vis_processor, text_processor)

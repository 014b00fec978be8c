"""From files to batches. Builders choose a dataset by its name in the config. In reading order:

- `stream.py`: streams of samples, batches, the mix of datasets, resuming; `workers.py`: the loader processes;
- `shards.py` and `shard_files.py`: stage 1's webdataset shards; `image_text.py`: lists of images and captions;
- `faults.py`: what can be wrong with samples; `features.py`: features of images, computed beforehand.
"""

from . import builders
from .stream import SampleStream, collate, make_loader

__all__ = ["SampleStream", "builders", "collate", "make_loader"]

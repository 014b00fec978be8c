"""From files to batches. Builders choose a dataset by its name in the config. In reading order:

- `stream.py`: streams of samples, batches, the mix of datasets, resuming; `workers.py`: the loader processes;
- `shards.py` and `shard_files.py`: stage 1's webdataset shards; `image_text.py`: lists of images and captions;
- `decoding.py`: bytes -> picture and caption; `faults.py`: what can be wrong with them;
- `features.py` and `classes.py`: image features that were computed beforehand, and what a classifier says of a photo.
"""

from . import builders
from .stream import SampleStream, collate, make_loader

__all__ = ["SampleStream", "builders", "collate", "make_loader"]

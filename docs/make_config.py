"""Makes docs/config.md, the page of all keys: `python docs/make_config.py > docs/config.md`."""

from collections.abc import Iterator
from dataclasses import fields

from minigpt4.common.schema import (
    UNUSED,
    BuildInfo,
    DatasetConfig,
    LoraConfig,
    ModelConfig,
    ProcessorConfig,
    QFormerConfig,
    RunConfig,
    meaning,
)

SECTIONS = {
    "model": ModelConfig,
    "model.qformer_kwargs": QFormerConfig,
    "model.lora": LoraConfig,
    "datasets.NAME": DatasetConfig,
    "datasets.NAME.build_info": BuildInfo,
    "datasets.NAME.vis_processor.train": ProcessorConfig,
    "run": RunConfig,
}


def docs_page() -> Iterator[str]:
    """The lines of docs/config.md: a table of keys for each section, then the keys that are not used."""
    yield "# Every key of a config\n"
    yield "`minigpt4 config --cfg-path X --docs` prints these texts beside the values of a config. A key that a config"
    yield "does not write has the default below, unless `minigpt4/configs/` has another for the model or dataset.\n"
    yield "`datasets.NAME.valid_info` has the keys of `build_info`; `vis_processor.eval` and `text_processor` have"
    yield "those of `vis_processor.train`.\n"
    rows = {name: [(f, f.metadata) for f in fields(cls) if "limits" in f.metadata] for name, cls in SECTIONS.items()}
    tables = [(f"`{name}`", name, found, False) for name, found in rows.items()]
    tables += [("Not used", name, rows[name], True) for name in ("model", "datasets.NAME", "run")]
    for number, (title, name, found, unused) in enumerate(tables):
        if not unused or number == len(rows):
            yield f"## {title}\n\n| key | default | meaning |\n|---|---|---|"
        for f, metadata in found:
            if metadata["doc"].startswith(UNUSED) == unused:
                default = f.default_factory() if callable(f.default_factory) else f.default
                shown = "null" if default is None else repr(default)
                yield f"| `{f'{name}.' if unused else ''}{f.name}` | `{shown}` | {meaning(metadata)} |"
        if not unused:
            yield ""


if __name__ == "__main__":
    print("\n".join(docs_page()))

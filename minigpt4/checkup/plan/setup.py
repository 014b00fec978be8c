"""A config on its devices: which dtypes, how many tokens, how many bytes of weights."""

import re
from dataclasses import dataclass, replace

from ...common.gpus import Gpu
from ...common.precision import DTYPES
from ...common.schema import Config
from ...conversation.chat_template import with_training_form
from ...conversation.prompts import IMAGE_MARK
from ...models.llm_loading import bits_of
from ...models.prompting import read_prompts
from .shapes import Shapes


@dataclass
class Setup:
    """What is planned.

    Args:
        tokens: text tokens of a row in training, padding included; None: model.max_txt_len.
        original: count the original's code as it ran in April 2023: logits of all tokens, attention not fused.
    """

    config: Config
    shapes: Shapes
    gpu: Gpu
    nproc: int = 1
    nodes: int = 1
    tokens: int | None = None
    original: bool = False

    def __post_init__(self):
        model, run = self.config.model, self.config.run
        self.batch, self.devices, self.on_cpu = run.batch_size_train, self.nproc * self.nodes, self.gpu.kind == "cpu"
        self.fused_attention = not (self.on_cpu or self.original)
        self.sharded = run.parallel == "fsdp" and self.devices > 1  # the LLM's layers, over all devices
        # Bytes of a number in the ViT, in the LLM, and in the arithmetic of trained parts: 2 or 4.
        self.vit_bytes = 4 if self.on_cpu or not model.freeze_vit else DTYPES[model.vit_precision].itemsize
        auto = 4 if self.on_cpu else 2
        self.llm_bytes = auto if model.llama_precision == "auto" else DTYPES[model.llama_precision].itemsize
        self.amp_bytes = 2 if run.amp and not (self.on_cpu and run.amp_dtype == "auto") else 4
        self.bits = bits_of(model.low_resource) or 8 * self.llm_bytes  # of a weight of the LLM's linear layers
        datasets = self.config.datasets.values()
        self.features = bool(datasets) and all(d.build_info.features for d in datasets)  # then the ViT does not run
        self.text_tokens = min(self.tokens or model.max_txt_len, model.max_txt_len)
        # Of a row: BOS, the longest instruction, the image, the text.
        image = (self.shapes.qformer or self.shapes.vit).tokens
        self.row_tokens = 1 + _instruction_tokens(self.config) + image + self.text_tokens

    def weights(self, name: str) -> int:
        """Bytes of a part's weights; what is trained is in fp32. low_resource leaves embeddings and output head as they
        are; it adds a scale in fp32 for each row of a matrix in 8 bit, for every 64 numbers in 4 bit."""
        part, llm = self.shapes.parts[name], self.shapes.llm
        size = {"visual_encoder": self.vit_bytes, "llama_model": self.llm_bytes}.get(name, 4)
        total = size * (part.parameters - part.trained) + 4 * part.trained
        if name == "llama_model" and self.bits < 16:
            scales = llm.rows if self.bits == 8 else llm.linear // 64
            total += llm.linear * self.bits // 8 + 4 * scales - size * llm.linear
        return total

    @property
    def layer_weights(self) -> int:
        """Bytes of the weights of all the LLM's layers, without LoRA."""
        part = self.shapes.parts["llama_model"]
        outside = part.parameters - part.trained - self.shapes.llm.weights
        return self.weights("llama_model") - 4 * part.trained - self.llm_bytes * outside

    def changed(self, options: dict[str, object]) -> "Setup":
        """With other values of some keys, written as for --options: {"model.low_resource": True}."""
        config = self.config
        for key, value in options.items():
            section, name = key.split(".")
            config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        return replace(self, config=config)

    def with_batch(self, batch: int) -> dict[str, int]:
        """The options for another batch size, and for as many batches as make the same optimizer step."""
        whole = self.batch * self.config.run.accum_grad_iters
        return {"run.batch_size_train": batch, "run.accum_grad_iters": -(-whole // batch)}


def _instruction_tokens(config: Config) -> int:
    """Tokens of the longest instruction, one for each word and sign: about LLaMA's count for plain English."""
    template = with_training_form(config.model, None).prompt_template
    files = {"model.prompt_path": config.model.prompt_path}
    files |= {f"datasets.{name}.prompt_path": dataset.prompt_path for name, dataset in config.datasets.items()}
    prompts = [p for key, path in files.items() if path for p in read_prompts(path, template, key)]
    return max((len(re.findall(r"\n|\w+|[^\w\s]+", prompt.replace(IMAGE_MARK, " "))) for prompt in prompts), default=0)

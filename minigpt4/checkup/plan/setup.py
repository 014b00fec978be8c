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


@dataclass(frozen=True)
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

    @property
    def devices(self) -> int:
        return self.nproc * self.nodes

    @property
    def on_cpu(self) -> bool:
        return self.gpu.kind == "cpu"

    @property
    def sharded(self) -> bool:
        """Whether FSDP shards the LLM's layers over the devices in training."""
        return self.config.run.parallel == "fsdp" and self.devices > 1

    @property
    def features(self) -> str:
        """Which datasets have build_info.features: all (then the ViT does not run in training), some or none."""
        have = [bool(dataset.build_info.features) for dataset in self.config.datasets.values()]
        return "none" if not any(have) else "all" if all(have) else "some"

    @property
    def llm_bytes(self) -> int:
        """Bytes of a number of the LLM: 2 or 4."""
        name = self.config.model.llama_precision
        return (4 if self.on_cpu else 2) if name == "auto" else DTYPES[name].itemsize

    @property
    def vit_bytes(self) -> int:
        """Bytes of a weight of the ViT. On a CPU, and when it is trained, that is fp32."""
        model = self.config.model
        return 4 if self.on_cpu or not model.freeze_vit else DTYPES[model.vit_precision].itemsize

    @property
    def amp_bytes(self) -> int:
        """Bytes of a number in the trained parts' arithmetic."""
        run = self.config.run
        return 2 if run.amp and not (self.on_cpu and run.amp_dtype == "auto") else 4

    @property
    def bits(self) -> int:
        """Bits of a weight of the LLM's linear layers."""
        return bits_of(self.config.model.low_resource) or 8 * self.llm_bytes

    @property
    def text_tokens(self) -> int:
        most = self.config.model.max_txt_len
        return min(self.tokens or most, most)

    @property
    def row_tokens(self) -> int:
        """Tokens of a row: BOS, the longest instruction, the image, the text."""
        model = with_training_form(self.config.model, None)
        files = {"model.prompt_path": model.prompt_path}
        files |= {f"datasets.{name}.prompt_path": d.prompt_path for name, d in self.config.datasets.items()}
        prompts = [p for key, path in files.items() if path for p in read_prompts(path, model.prompt_template, key)]
        # One token for each word and sign: about LLaMA's count for plain English.
        words = [len(re.findall(r"\n|\w+|[^\w\s]+", prompt.replace(IMAGE_MARK, " "))) for prompt in prompts]
        image = (self.shapes.qformer or self.shapes.vit).tokens
        return 1 + max(words, default=0) + image + self.text_tokens

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

    def changed(self, batch: int | None = None, parallel: str | None = None, **model) -> "Setup":
        """With other keys of `model`, another run.parallel, or another batch size with as many batches as make the
        same optimizer step."""
        run = replace(self.config.run, parallel=parallel or self.config.run.parallel)
        if batch:
            whole = run.batch_size_train * run.accum_grad_iters
            run = replace(run, batch_size_train=batch, accum_grad_iters=-(-whole // batch))
        return replace(self, config=replace(self.config, run=run, model=replace(self.config.model, **model)))

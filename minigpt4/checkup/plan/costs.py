"""A config on its devices, and by formula what a training step and a chat cost there: bytes of memory, and operations
for the roofline.

Notation: a row is one picture with its texts; b is bytes of a number: 2 in 16 bit, 4 in fp32.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...common.gpus import Gpu, Operation
from ...common.precision import DTYPES
from ...common.schema import Config
from ...conversation.chat_template import with_training_form
from ...conversation.generation import Decoding
from ...conversation.prompts import IMAGE_MARK
from ...models.llm_loading import bits_of
from ...models.prompting import read_prompts
from .shapes import Shapes

MAX_CONTEXT = 2000  # tokens of a chat's context and answer together, as Chat's default
# Between matrix products (casts, norms, rotary embeddings, residual sums) each number that a layer makes is read or
# written this often in forward, and twice as often in backward. Counted once, on Vicuna's layers.
TRAFFIC = 4


@dataclass
class Setup:
    """What is planned."""

    config: Config
    shapes: Shapes
    gpu: Gpu
    nproc: int = 1
    nodes: int = 1
    tokens: int | None = None  # of a row's text in training, padding included; None: model.max_txt_len
    original: bool = False  # the original's code as it ran in April 2023: logits of all tokens, attention not fused

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


def kept_by_layer(setup: Setup, length: int) -> int:
    """Bytes that a layer of the LLM keeps for backward, of one row of `length` tokens. Its weights are frozen, so the
    inputs of its linear layers are not kept."""
    llm, b = setup.shapes.llm, setup.llm_bytes
    width = llm.heads * llm.head_width
    token = 2 * 4 * llm.hidden  # the inputs of both norms, in fp32
    token += 3 * b * width  # queries, keys, values
    if setup.fused_attention:
        token += b * width  # its output
    else:
        token += (6 if b == 2 else 4) * llm.heads * length  # its weights in fp32, and a copy in 16 bit
    token += 3 * b * llm.intermediate  # gate, its activation, and what that is multiplied with
    token += (setup.amp_bytes + 1) * llm.lora_inputs // llm.layers  # LoRA's inputs, and the mask of their dropout
    if setup.original:  # transformers 4.28: scores, and the norms' inputs in 16 bit, are kept too
        token += b * (llm.heads * length + 2 * llm.hidden)
    if setup.bits == 8 and not setup.on_cpu:  # bitsandbytes keeps the inputs of linear layers
        token += b * (2 * llm.hidden + llm.intermediate)
    return length * token


def activations(setup: Setup) -> tuple[int, int]:
    """Bytes kept for backward in a training step, and bytes needed beside them at its peak."""
    model, shapes, length = setup.config.model, setup.shapes, setup.row_tokens
    again, llm, b = model.use_grad_checkpoint, shapes.llm, setup.llm_bytes
    layer = kept_by_layer(setup, length)
    row = llm.layers * (b * llm.hidden * length if again else layer)
    row += (4 + b) * llm.hidden * length  # embeddings, and the input of the last norm in fp32
    row += 4 * _logits(setup)  # log-probabilities in fp32
    if not model.freeze_vit and not setup.features:
        row += setup.amp_bytes * shapes.vit.outputs
    if shapes.qformer and not (model.freeze_qformer and model.freeze_vit):
        row += setup.amp_bytes * shapes.qformer.outputs
    # At the peak: gradients of the logits in fp32 and 16 bit, or a layer's backward, which first makes the layer again.
    beside = max((4 + 2 * b) * _logits(setup), (2 if again else 1) * layer)
    return setup.batch * row, setup.batch * beside


def _logits(setup: Setup) -> int:
    """How many logits of a row the loss reads: those of its text; in the original, those of all tokens."""
    return setup.shapes.llm.vocabulary * (setup.row_tokens if setup.original else setup.text_tokens)


def training_work(setup: Setup) -> Iterator[Operation]:
    """Forward and backward of one batch."""
    model, shapes, batch = setup.config.model, setup.shapes, setup.batch
    llm, b, length = shapes.llm, setup.llm_bytes, setup.row_tokens
    if not setup.features:
        yield from _vision(setup, "visual_encoder", batch, 1 if model.freeze_vit else 3)
    if shapes.qformer:
        yield from _vision(setup, "Qformer", batch, 1 if model.freeze_vit and model.freeze_qformer else 3)
    # A frozen matrix costs one product in forward and one in backward, for the gradient of its input; attention costs
    # two in forward and four in backward, five when it is fused. With checkpointing, all of forward runs twice.
    forward = 2 if model.use_grad_checkpoint else 1
    tokens = batch * length
    yield (forward + 1) * 2 * llm.weights * tokens, b, (forward + 1) * setup.layer_weights
    attention = 4 * length * llm.heads * llm.head_width * llm.layers * tokens
    yield (forward + (2.5 if setup.fused_attention else 2)) * attention, b, 0
    yield 0, b, (forward + 2) * TRAFFIC * batch * llm.layers * kept_by_layer(setup, length)
    logits = batch * _logits(setup)
    yield 2 * 2 * llm.hidden * logits, b, 3 * TRAFFIC * 4 * logits


def _vision(setup: Setup, part: str, batch: int, passes: int) -> Iterator[Operation]:
    """ViT or Q-Former; passes: 1 for forward alone, 3 with backward."""
    tower = setup.shapes.vit if part == "visual_encoder" else setup.shapes.qformer
    b = setup.vit_bytes if passes == 1 and part == "visual_encoder" else setup.amp_bytes
    yield passes * batch * tower.flops, b, passes * setup.weights(part)
    yield 0, b, passes * TRAFFIC * b * batch * tower.outputs


def longest_context(setup: Setup) -> tuple[int, int]:
    """Tokens before the last answer of the longest chat, and with it."""
    longest = min(MAX_CONTEXT, setup.shapes.llm.positions or MAX_CONTEXT)
    return max(longest - Decoding().max_new_tokens, 1), longest


def chat_activations(setup: Setup) -> tuple[int, int]:
    """Bytes of keys and values at the end of the longest chat; bytes to read its context, layer by layer."""
    llm, (context, longest) = setup.shapes.llm, longest_context(setup)
    cache = 2 * llm.layers * llm.key_heads * llm.head_width * setup.llm_bytes * longest
    return cache, kept_by_layer(setup, context)


def next_token_work(setup: Setup) -> Iterator[Operation]:
    """Make one token at the end of the longest chat: read all weights, read and copy all keys and values."""
    llm, b = setup.shapes.llm, setup.llm_bytes
    head = llm.hidden * llm.vocabulary
    yield 2 * (llm.weights + head), b, setup.layer_weights + b * head
    yield 0, b, 3 * chat_activations(setup)[0]

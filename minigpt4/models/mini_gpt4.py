"""MiniGPT-4: image -> frozen ViT -> frozen Q-Former -> one trained linear layer -> frozen LLM.

The paper's ablations are keys of the config: no Q-Former, a trained one, more layers. LoRA in the LLM is one more.

Notation for shapes: B batch, N patches, Q image tokens, S sequence length, M target tokens; D_vit, D_q, D_llm widths,
V vocabulary.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ..common.checkpoint import read_state
from ..common.download import local_path
from ..common.errors import ConfigError
from ..common.memory import check_loaded, empty_weights
from ..common.paths import read_text, resolve_path
from ..common.precision import Precision, resolve_precision
from ..common.registry import MODELS
from ..common.schema import ModelConfig
from ..conversation.chat_template import conversation_of, with_training_form
from ..conversation.plain_text import longest_token, text_marker, token_ids
from ..conversation.prompts import IMAGE_AFTER, IMAGE_BEFORE, IMAGE_MARK
from . import qformer as qf
from .adapters import add_lora, create_projection, set_lora_training
from .batch import lay_out_batch, split_prompt, to_device
from .eva_vit import create_vit, encode_tokens
from .llm import create_llm, head_input_hidden_states, load_tokenizer, pad_apart_from
from .llm_loading import load_llm, stored_dtype
from .published import PublishedWeights

log = logging.getLogger("minigpt4")


@MODELS.register("mini_gpt4")
class MiniGPT4(PublishedWeights):
    """Module names are part of the checkpoint format: visual_encoder, ln_vision, query_tokens, Qformer, llama_proj,
    llama_model."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        llm_config: PreTrainedConfig | None = None,
        precision: Precision | None = None,
        llm_apart: bool = False,
    ):
        """Build the model and load every frozen weight that the config names, strictly.

        Args:
            device: where it goes. `meta` builds the whole model without memory: no weight file is opened, and of the
                LLM's folder config.json and the tokenizer, which may be missing (then `tokenizer` is None).
            llm_config: on the meta device, stands in for the LLM's folder.
            precision: the dtypes of a training run; None: those of a chat.
            llm_apart: leave the LLM memory-mapped on the CPU in its files' dtype, from where FSDP shards it.
        Raises:
            CheckpointError, ConfigError: a file does not hold what the config says.
        """
        super().__init__()
        device = torch.device(device)
        self.config = config
        self._known_lengths: dict[tuple[int, ...], int] = {}  # shape of an image -> Q
        self._known_prompts: dict[str, tuple[list[int], list[int]]] = {}  # prompt -> ids before and after the image
        q = config.qformer_kwargs

        meta = device.type == "meta"
        # Parameters that a file brings are made by the file: no memory and no random numbers before.
        with empty_weights(meta or bool(config.vit_ckpt)):
            self.visual_encoder = create_vit(
                config.vit_model, config.image_size, config.drop_path_rate, **config.vit_kwargs
            )
        width = self.visual_encoder.num_features  # D_vit
        with empty_weights(meta or bool(config.q_former_model)):
            self.ln_vision = nn.LayerNorm(width, eps=1e-5)  # transformers' BLIP-2 has 1e-6; the original this
            self.query_tokens = self.Qformer = None
            if config.has_qformer:
                self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_token, q.hidden_size))
                nn.init.normal_(self.query_tokens, std=0.02)
                self.Qformer = qf.create_qformer(width, **vars(q))
        llm_path = resolve_path(config.llama_model) if meta else local_path(config.llama_model)
        stored = None if meta else stored_dtype(llm_path)
        self.precision = precision or resolve_precision(config, device, stored=stored)
        for module in self.visual_encoder.modules():  # norms stay fp32; source: convert_weights_to_fp16
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(self.precision.vit)
        if meta:
            self._build_meta_llm(llm_path, llm_config)
        else:
            self._load_vision(device)
            self.tokenizer = load_tokenizer(llm_path, config.pad_token)
            attention = config.attn_implementation
            if attention == "auto":
                # On CPU the backward of fused attention is slow: eager takes 0.7 of the small model's step.
                attention = "sdpa" if device.type == "cuda" else "eager"
            self.llama_model = load_llm(
                llm_path,
                (llm_apart and stored) or self.precision.llm,
                torch.device("cpu") if llm_apart else device,
                low_resource=config.low_resource,
                device_map=config.device_map,
                max_memory=config.max_memory,
                attn_implementation=attention,
            )
        if config.use_grad_checkpoint:
            self.llama_model.activation_checkpointing_enable({"use_reentrant": False})
            if not config.freeze_vit and hasattr(self.visual_encoder, "set_grad_checkpointing"):
                self.visual_encoder.set_grad_checkpointing()
        self.llama_proj = create_projection(
            q.hidden_size if config.has_qformer else width,
            self.llama_model.config.get_text_config().hidden_size,
            config.proj_layers,
        )
        if config.lora:
            add_lora(self.llama_model, config.lora)
        self.config = config = with_training_form(config, self.tokenizer)
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template) if config.prompt_path else []
        self.as_text, self.longest_token = str, sys.maxsize
        if self.tokenizer:
            rows = self.llama_model.get_input_embeddings().num_embeddings
            self.as_text = text_marker(self.tokenizer, conversation_of(config.conv_template, self.tokenizer), rows)
            self.longest_token = longest_token(self.tokenizer)
            if config.pad_token is None:
                pad_apart_from(self.tokenizer, self.token_ids(config.end_sym))
            self._check_end_symbol()

        if config.freeze_vit:
            self.visual_encoder.requires_grad_(False)
            self.ln_vision.requires_grad_(False)
        if config.has_qformer and config.freeze_qformer:
            self.Qformer.requires_grad_(False)
            self.query_tokens.requires_grad_(False)
        if config.ckpt and not meta:
            self.load_trained(config.ckpt)
        if not meta:
            for name, part in self.named_children():
                if not (name == "llama_model" and config.device_map):  # what lies on disk is empty here
                    check_loaded(part)
        self._place(device, bool(config.device_map) or llm_apart)
        self.train()

    # -- weights ------------------------------------------------------------------------------------------------

    def _build_meta_llm(self, path: str, llm_config: PreTrainedConfig | None) -> None:
        self.llama_model = create_llm(llm_config or path, self.precision.llm)
        has_tokenizer = llm_config is None and (path.endswith(".gguf") or any(Path(path).glob("tokenizer.*")))
        self.tokenizer = load_tokenizer(path, self.config.pad_token) if has_tokenizer else None

    def _load_vision(self, device: torch.device) -> None:
        if self.config.vit_ckpt:
            self.load_vit(read_state(self.config.vit_ckpt), device)
        if self.config.q_former_model:
            self.load_qformer(read_state(self.config.q_former_model), device)

    # -- modes and devices --------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "MiniGPT4":
        """Frozen parts stay in eval mode whatever is asked: no dropout, no batch-norm updates."""
        super().train(mode)
        self.llama_model.eval()
        set_lora_training(self.llama_model, mode)
        if self.config.use_grad_checkpoint:
            # A layer recomputes only when it is itself in training mode; what it is made of stays in eval mode.
            for module in self.llama_model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = mode
        if self.config.freeze_vit:
            self.visual_encoder.eval()
            self.ln_vision.eval()
        if self.config.has_qformer and self.config.freeze_qformer:
            self.Qformer.eval()
        return self

    def _place(self, device: torch.device, llm_apart: bool) -> None:
        """Everything on `device`; an LLM that is elsewhere stays there."""
        if not llm_apart:
            self.to(device)
            return
        for name, part in self.named_children():
            if name != "llama_model":
                part.to(device)
        if self.query_tokens is not None:
            self.query_tokens.data = self.query_tokens.data.to(device)

    def compile_layers(self) -> None:
        """torch.compile each layer by itself: all layers of a kind are alike, so one is compiled, for any length."""
        for layer in [*self.llama_model.get_decoder().layers, *getattr(self.visual_encoder, "blocks", [])]:
            layer.compile(dynamic=True)

    @property
    def device(self) -> torch.device:
        return next(self.llama_proj.parameters()).device

    # -- from image and text to embeddings ----------------------------------------------------------------------

    def encode_img(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> image_embeds (B, Q, D_llm), what the LLM sees of each image; (B, N, D_llm) without
        Q-Former. Instead of an image, what the ViT made of it before: (B, N, D_vit)."""
        image = image.to(self.device)
        dtype = self.precision.vit
        # A frozen ViT computes in its own dtype; a trained one in that of the training step's autocast.
        frozen = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with (
            frozen if self.config.freeze_vit else nullcontext(),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vit),
        ):
            patches = encode_tokens(self.visual_encoder, image) if image.ndim == 4 else image  # (B, N, D_vit)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not (self.config.freeze_vit and self.config.freeze_qformer)
        ):
            tokens = self.ln_vision(patches.float())
            if self.config.has_qformer:
                tokens = self.Qformer(
                    query_embeds=self.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=tokens
                ).last_hidden_state  # (B, Q, D_q)
        return self.llama_proj(tokens)

    def token_ids(self, text: str | list[str]) -> list:
        """Ids of `text` by itself, without BOS or EOS; of a list, the ids of each text. Control tokens that `as_text`
        marked are text."""
        return token_ids(self.tokenizer, text)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids (...) -> embeddings (..., D_llm) on the model's device, wherever model.device_map put the table."""
        table = self.llama_model.get_input_embeddings()
        where = table.weight.device
        return table(ids if where.type == "meta" else ids.to(where)).to(self.device)

    def segment_ids(self, segments: Sequence[str | Tensor]) -> list[list[int] | Tensor]:
        """Text and images in the order given -> ids of each text, and the images as they are.

        Each text is tokenized by itself, so each gets the tokenizer's own leading-space piece, as in the original. BOS
        goes first, unless the first text already begins with it (ChatML with `<|im_start|>` as BOS) or there is none.

        Args:
            segments: texts, and image embeddings (Q, D_llm).
        """
        parts = [s if isinstance(s, Tensor) else self.token_ids(s) for s in segments]
        bos = self.tokenizer.bos_token_id
        if bos is not None and (isinstance(parts[0], Tensor) or parts[0][:1] != [bos]):
            parts.insert(0, [bos])
        return parts

    def embed_segments(self, segments: Sequence[str | Tensor]) -> Tensor:
        """Text and images as for `segment_ids` -> embeds (1, T, D_llm)."""
        return self.embed_parts(self.segment_ids(segments))

    def embed_parts(self, parts: Sequence[list[int] | Tensor]) -> Tensor:
        """What `segment_ids` returns -> embeds (1, T, D_llm)."""
        dtype = self.llama_model.get_input_embeddings().weight.dtype
        rows = [p if isinstance(p, Tensor) else self.embed_ids(torch.tensor(p, dtype=torch.long)) for p in parts]
        return torch.cat([row.to(dtype) for row in rows])[None]

    # -- loss -----------------------------------------------------------------------------------------------------

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """Samples -> the tensors of `forward`, on the CPU; see `lay_out_batch`.

        Args:
            samples: {"image": (B, 3, H, W) or features (B, N, D_vit), "text_input": list[B] of a text or of several
                captions}. May bring "prompt", list[B], an instruction for each row, with or without `<ImageHere>`, or
                None; and "prompts", of which one is drawn for the other rows, instead of the model's own.
        """
        image, texts, most = samples["image"], samples["text_input"], self.config.max_txt_len
        choices = samples.get("prompts") or self.prompt_list
        drawn = choices[torch.randint(len(choices), ()).item()] if choices else ""
        own = samples.get("prompt") or [None] * len(texts)
        prompts = [drawn if prompt is None else self._in_template(prompt) for prompt in own]
        rows = [[text] if isinstance(text, str) else text for text in texts]
        # What is sure to be cut off is not tokenized either.
        closed = [self.as_text(text[: most * self.longest_token]) + self.config.end_sym for row in rows for text in row]
        ids = iter(self.token_ids(closed) if closed else ())
        captions = [[next(ids)[:most] for _ in row] for row in rows]
        prompt_ids = [self._prompt_ids(prompt) for prompt in prompts]
        return {"image": image} | lay_out_batch(
            prompt_ids, captions, self._image_tokens(image), self.tokenizer.pad_token_id
        )

    def _in_template(self, text: str) -> str:
        """A sample's own instruction, in the model's training template."""
        if IMAGE_MARK not in text:
            text = f"{IMAGE_BEFORE}{IMAGE_MARK}{IMAGE_AFTER}{text}"
        return (self.config.prompt_template or "{}").replace("{}", text)

    def _prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """The ids before the image, BOS first, and after it; of an empty prompt, BOS alone (stage 1)."""
        if prompt not in self._known_prompts:
            image = torch.empty(0)
            before, after = split_prompt(self._with_plain_instruction(prompt)) if prompt else (None, None)
            parts = self.segment_ids([before, image, after] if prompt else [image])
            at = next(i for i, part in enumerate(parts) if part is image)
            if len(self._known_prompts) >= 4096:  # questions of a VQA dataset
                self._known_prompts.clear()
            self._known_prompts[prompt] = [*chain(*parts[:at])], [*chain(*parts[at + 1 :])]
        return self._known_prompts[prompt]

    def _with_plain_instruction(self, prompt: str) -> str:
        """An instruction in `prompt_template`, with its control tokens marked as text."""
        before, _, after = (self.config.prompt_template or "{}").partition("{}")
        if not (prompt.startswith(before) and prompt.endswith(after)):
            return prompt
        return before + self.as_text(prompt[len(before) : len(prompt) - len(after)]) + after

    @torch.no_grad()
    def _image_tokens(self, image: Tensor) -> int:
        """Q: how many positions an image takes. Asked of `encode_img`, once, for a subclass may change it."""
        shape = tuple(image.shape[1:])
        if shape not in self._known_lengths:
            training = self.training
            self.eval()  # no dropout, no batch-norm updates
            self._known_lengths[shape] = self.encode_img(image[:1]).shape[1]
            self.train(training)
        return self._known_lengths[shape]

    def embed_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """What the LLM reads: text embeddings, with the images in their places. (B, S, D_llm)"""
        embeds = self.embed_ids(batch["input_ids"])  # (B, S, D_llm)
        images = self.encode_img(batch["image"]).to(embeds.dtype)  # (B, Q, D_llm)
        flat = embeds.flatten(0, 1).index_copy(0, batch["image_positions"], images.flatten(0, 1))
        return flat.view_as(embeds)

    def forward(self, samples: dict) -> dict[str, Tensor]:
        """Mean cross-entropy over the target tokens of the batch: {"loss": scalar}.

        Only hidden states that predict a target meet lm_head: logits for image and prompt tokens are never made.

        Args:
            samples: for `build_batch`, or what it returned.
        Raises:
            PromptError: nothing in the batch is trained on.
        """
        batch = to_device(samples if "input_ids" in samples else self.build_batch(samples), self.device)
        embeds, mask = self.embed_batch(batch), batch["attention_mask"]
        if mask.ndim == 4:
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(embeds.dtype).min
            )
        hidden = head_input_hidden_states(
            self.llama_model, inputs_embeds=embeds, attention_mask=mask, position_ids=batch.get("position_ids")
        )  # (B, S, D_llm)
        # index_select makes the rows contiguous; a strided slice before a bf16 lm_head is slower than all logits.
        picked = hidden.flatten(0, 1).index_select(0, batch["target_positions"])  # (M, D_llm)
        logits = self.llama_model.get_output_embeddings()(picked)  # (M, V)
        return {"loss": F.cross_entropy(logits.float(), batch["target_ids"])}

    def _check_end_symbol(self) -> None:
        if self.tokenizer.pad_token_id in self.token_ids(self.config.end_sym):
            raise ConfigError(
                f"model.end_sym: {self.config.end_sym!r} is also the padding token, which is never trained on, so "
                "answers would not learn to end; set model.pad_token to another token of the vocabulary"
            )


def read_prompts(path: str, template: str, key: str = "model.prompt_path") -> list[str]:
    """The instructions of a file, one a line, each put into `template`; lines without `<ImageHere>` are left out."""
    try:
        text = read_text(resolve_path(path))
    except OSError as error:
        raise ConfigError(f"{key}: {path} should be a text file of instructions: {error}") from None
    prompts = [template.replace("{}", line.strip()) for line in text.splitlines() if IMAGE_MARK in line]
    if not prompts:
        raise ConfigError(f"{key}: no line of {path} holds {IMAGE_MARK}")
    for prompt in prompts:
        split_prompt(prompt)
    return prompts

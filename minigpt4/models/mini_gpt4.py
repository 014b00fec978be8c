"""MiniGPT-4: image -> frozen ViT -> frozen Q-Former -> one trained linear layer -> frozen LLM.

Config keys change this as in the paper's ablations: no Q-Former, a trained one, more layers; and LoRA in the LLM.

Notation for shapes: B batch, N patches, Q image tokens, S sequence length, M target tokens; D_vit, D_q, D_llm widths,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..common.checkpoint import empty_weights
from ..common.download import local_path
from ..common.precision import Precision, resolve_precision
from ..common.registry import MODELS
from ..common.schema import ModelConfig
from . import qformer as qf
from .adapters import add_lora, create_projection, set_lora_training
from .batch import lay_out_batch, to_device
from .eva_vit import create_vit, encode_tokens
from .llm import load_tokenizer
from .llm_loading import load_llm, stored_dtype
from .prompting import Prompting
from .published import PublishedWeights
from .unpadded import hidden_states, leave_padding_out


@MODELS.register("mini_gpt4")
class MiniGPT4(Prompting, PublishedWeights):
    """Module names are part of the checkpoint format: visual_encoder, ln_vision, query_tokens, Qformer, llama_proj,
    llama_model."""

    def __init__(
        self, config: ModelConfig, device: torch.device | str = "cpu", precision: Precision | None = None,
        llm_apart: bool = False,
    ):  # fmt: skip
        """Build the model and load every weight file that the config names, strictly.

        Args:
            precision: the dtypes of a training run; None: those of a chat.
            llm_apart: leave the LLM memory-mapped on the CPU in the dtype of its files, for FSDP to shard.
        """
        nn.Module.__init__(self)
        device = torch.device(device)
        self.config = config
        self.precision = precision or resolve_precision(
            config, device, stored=stored_dtype(local_path(config.llama_model))
        )
        self._known_lengths: dict[tuple[int, ...], int] = {}  # shape of an image -> Q
        # Parameters of a weight file take no memory and no random numbers before it is loaded.
        with empty_weights(bool(config.vit_ckpt)):
            self.visual_encoder = create_vit(
                config.vit_model, config.image_size, config.drop_path_rate, **config.vit_kwargs
            )
        width = self.visual_encoder.num_features  # D_vit
        with empty_weights(bool(config.q_former_model)):
            self.ln_vision = nn.LayerNorm(width, eps=1e-5)  # transformers' BLIP-2 has 1e-6; the original this
            self.query_tokens = self.Qformer = None
            if config.has_qformer:
                q = config.qformer_kwargs
                self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_token, q.hidden_size))
                nn.init.normal_(self.query_tokens, std=0.02)
                self.Qformer = qf.create_qformer(width, **vars(q))
                width = q.hidden_size  # D_q
        for module in self.visual_encoder.modules():  # norms stay fp32; source: convert_weights_to_fp16
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(self.precision.vit)
        self.load_vision(device)
        self.llama_model, tokenizer = self.load_llm(device, llm_apart)
        leave_padding_out(self.llama_model)
        if config.use_grad_checkpoint:
            self.llama_model.activation_checkpointing_enable({"use_reentrant": False})
            if not config.freeze_vit and hasattr(self.visual_encoder, "set_grad_checkpointing"):
                self.visual_encoder.set_grad_checkpointing()
        llm_width = self.llama_model.config.get_text_config().hidden_size
        self.llama_proj = create_projection(width, llm_width, config.proj_layers)
        if config.lora:
            add_lora(self.llama_model, config.lora)
        # It also fills in what `self.config` leaves to conv_template.
        Prompting.__init__(self, config, tokenizer, self.llama_model.get_input_embeddings().num_embeddings)

        if config.freeze_vit:
            self.visual_encoder.requires_grad_(False)
            self.ln_vision.requires_grad_(False)
        if config.has_qformer and config.freeze_qformer:
            self.Qformer.requires_grad_(False)
            self.query_tokens.requires_grad_(False)
        self.load_ckpt()
        for name, part in self.named_children():
            if not (name == "llama_model" and (config.device_map or llm_apart)):  # such an LLM is not moved
                part.to(device)
        if self.query_tokens is not None:
            self.query_tokens.data = self.query_tokens.data.to(device)
        self.train()

    def load_llm(
        self, device: torch.device, apart: bool
    ) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
        """The frozen LLM that model.llama_model names, and its tokenizer."""
        config, path = self.config, local_path(self.config.llama_model)
        attention = config.attn_implementation
        if attention == "auto":
            # On CPU the backward of fused attention is slow: eager takes 0.7 of the small model's step.
            attention = "sdpa" if device.type == "cuda" else "eager"
        tokenizer = load_tokenizer(path, config.pad_token)
        llm = load_llm(
            path, (apart and stored_dtype(path)) or self.precision.llm, torch.device("cpu") if apart else device,
            low_resource=config.low_resource, device_map=config.device_map, max_memory=config.max_memory,
            attn_implementation=attention,
        )  # fmt: skip
        return llm, tokenizer

    def train(self, mode: bool = True) -> MiniGPT4:
        """Frozen parts stay in eval mode: no dropout, no batch-norm updates."""
        super().train(mode)
        self.llama_model.eval()
        set_lora_training(self.llama_model, mode)
        if self.config.use_grad_checkpoint:
            # A layer recomputes only when it is in training mode; the modules inside it stay in eval mode.
            for module in self.llama_model.modules():
                if isinstance(module, transformers.GradientCheckpointingLayer):
                    module.training = mode
        if self.config.freeze_vit:
            self.visual_encoder.eval()
            self.ln_vision.eval()
        if self.config.has_qformer and self.config.freeze_qformer:
            self.Qformer.eval()
        return self

    def compile_layers(self) -> None:
        """torch.compile each layer; equal layers share one compilation, for any length."""
        for layer in [*self.llama_model.get_decoder().layers, *getattr(self.visual_encoder, "blocks", [])]:
            layer.compile(dynamic=True)

    @property
    def device(self) -> torch.device:
        return next(self.llama_proj.parameters()).device

    def encode_img(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), or its features (B, N, D_vit) -> image_embeds (B, Q, D_llm); without Q-Former, Q is N."""
        image = image.to(self.device)
        dtype = self.precision.vit
        # A frozen ViT computes in its own dtype; a trained one in autocast's.
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

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids (...) -> embeddings (..., D_llm) on the model's device, wherever model.device_map put the table."""
        table = self.llama_model.get_input_embeddings()
        return table(ids.to(table.weight.device)).to(self.device)

    def embed_segments(self, segments: Sequence[str | Tensor]) -> Tensor:
        """Text and images as for `segment_ids` -> embeds (1, T, D_llm)."""
        return self.embed_parts(self.segment_ids(segments))

    def embed_parts(self, parts: Sequence[list[int] | Tensor]) -> Tensor:
        """What `segment_ids` returns -> embeds (1, T, D_llm)."""
        dtype = self.llama_model.get_input_embeddings().weight.dtype
        rows = [p if isinstance(p, Tensor) else self.embed_ids(torch.tensor(p, dtype=torch.long)) for p in parts]
        return torch.cat([row.to(dtype) for row in rows])[None]

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """Samples -> the tensors of `forward`, on the CPU; see `lay_out_batch`.

        Args:
            samples: {"image": (B, 3, H, W) or features (B, N, D_vit), "text_input": list[B] of texts}. Optional:
                "prompt", list[B], an instruction for each row, with or without `<ImageHere>`, or None; "prompts", of
                which one is drawn for the other rows, instead of the model's own.
        """
        image, pad = samples["image"], self.tokenizer.pad_token_id
        captions = self.caption_ids(samples["text_input"])
        return {"image": image} | lay_out_batch(self.prompt_ids(samples), captions, self.image_tokens(image), pad)

    @torch.no_grad()
    def image_tokens(self, image: Tensor) -> int:
        """Q, the number of positions that an image takes, by one call of `encode_img`, which a subclass may change."""
        shape = tuple(image.shape[1:])
        if shape not in self._known_lengths:
            training = self.training
            self.eval()  # no dropout, no batch-norm updates
            self._known_lengths[shape] = self.encode_img(image[:1]).shape[1]
            self.train(training)
        return self._known_lengths[shape]

    def embed_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """Text embeddings with the images in their places: (B, S, D_llm)."""
        embeds = self.embed_ids(batch["input_ids"])  # (B, S, D_llm)
        images = self.encode_img(batch["image"]).to(embeds.dtype)  # (B, Q, D_llm)
        flat = embeds.flatten(0, 1).index_copy(0, batch["image_positions"], images.flatten(0, 1))
        return flat.view_as(embeds)

    def read_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """The hidden states (B, S, D_llm) that lm_head reads. Padding is left out where the LLM allows it."""
        return hidden_states(self.llama_model, self.embed_batch(batch), batch)

    def forward(self, samples: dict) -> dict[str, Tensor]:
        """Input or output of `build_batch` -> {"loss": mean cross-entropy over the target tokens}. Only the logits of
        these are made. Raises PromptError for a batch without targets."""
        batch = to_device(samples if "input_ids" in samples else self.build_batch(samples), self.device)
        hidden = self.read_batch(batch).flatten(0, 1)
        # index_select makes the rows contiguous; a strided slice before a bf16 lm_head is slower than all logits.
        picked = hidden.index_select(0, batch["target_positions"])  # (M, D_llm)
        logits = self.llama_model.get_output_embeddings()(picked)  # (M, V)
        return {"loss": F.cross_entropy(logits.float(), batch["target_ids"])}

"""MiniGPT-4: image -> frozen ViT -> frozen Q-Former -> one trained linear layer -> frozen LLM.

The paper's ablations are keys of the config: no Q-Former, a trained one, more layers. LoRA in the LLM is one more.

Notation for shapes: B batch, N patches, Q queries, P prefix tokens, T text tokens, S = P + T, K captions of an image,
D_vit, D_q, D_llm widths, V vocabulary.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ..common.checkpoint import read_state
from ..common.download import local_path
from ..common.errors import ConfigError, UserError
from ..common.memory import check_loaded, empty_weights
from ..common.paths import read_text, resolve_path
from ..common.registry import MODELS
from ..common.schema import ModelConfig
from ..conversation.chat_template import with_training_form
from ..conversation.prompts import IMAGE_MARK
from . import qformer as qf
from .adapters import add_lora, create_projection, set_lora_training
from .eva_vit import create_vit, encode_tokens
from .llm import create_llm, head_input_hidden_states, llm_dtype, load_tokenizer, pad_apart_from, vit_dtype
from .llm_loading import load_llm
from .published import PublishedWeights

log = logging.getLogger("minigpt4")


class PromptError(UserError):
    """A prompt that cannot take an image."""


@MODELS.register("mini_gpt4")
class MiniGPT4(PublishedWeights):
    """Module names are part of the checkpoint format: visual_encoder, ln_vision, query_tokens, Qformer, llama_proj,
    llama_model."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        llm_config: PreTrainedConfig | None = None,
        llm_device: torch.device | str | None = None,
    ):
        """Build the model and load every frozen weight that the config names, strictly.

        Args:
            device: where it goes. `meta` builds the whole model without memory: no weight file is opened, and of the
                LLM's folder config.json and the tokenizer, which may be missing (then `tokenizer` is None).
            llm_config: on the meta device, stands in for the LLM's folder.
            llm_device: where the LLM goes, if not to `device` too: to the CPU, from where FSDP parts it.
        Raises:
            CheckpointError, ConfigError: a file does not hold what the config says.
        """
        super().__init__()
        device = torch.device(device)
        self.config = config
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
        self._set_vit_precision(device)
        if meta:
            self._build_meta_llm(llm_config)
        else:
            self._load_vision(device)
            llm_path = local_path(config.llama_model)
            self.tokenizer = load_tokenizer(llm_path, config.pad_token)
            self.llama_model = load_llm(
                llm_path,
                llm_dtype(config.llama_precision, device),
                torch.device(llm_device or device),
                low_resource=config.low_resource,
                device_map=config.device_map,
                max_memory=config.max_memory,
            )
        if config.use_grad_checkpoint:
            self.llama_model.activation_checkpointing_enable({"use_reentrant": False})
        self.llama_proj = create_projection(
            q.hidden_size if config.has_qformer else width,
            self.llama_model.config.get_text_config().hidden_size,
            config.proj_layers,
        )
        if config.lora:
            add_lora(self.llama_model, config.lora)
        self.config = config = with_training_form(config, self.tokenizer)
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template) if config.prompt_path else []
        if self.tokenizer:
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
        self._place(device, llm_apart=bool(config.device_map or llm_device))
        self.train()

    # -- weights ------------------------------------------------------------------------------------------------

    def _build_meta_llm(self, llm_config: PreTrainedConfig | None) -> None:
        path = resolve_path(self.config.llama_model)
        dtype = llm_dtype(self.config.llama_precision, torch.device("meta"))
        self.llama_model = create_llm(llm_config or path, dtype)
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

    def _set_vit_precision(self, device: torch.device) -> None:
        """Conv and Linear weights of the ViT in `vit_precision`, norms in fp32. Source: convert_weights_to_fp16."""
        self.vit_dtype = vit_dtype(self.config.vit_precision, device) if self.config.freeze_vit else torch.float32
        for module in self.visual_encoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(self.vit_dtype)

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

    @property
    def device(self) -> torch.device:
        return next(self.llama_proj.parameters()).device

    # -- from image and text to embeddings ----------------------------------------------------------------------

    def encode_img(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> image_embeds (B, Q, D_llm), what the LLM sees of each image; (B, N, D_llm) without
        Q-Former. Instead of an image, what the ViT made of it before: (B, N, D_vit)."""
        image = image.to(self.device)
        half = torch.autocast(self.device.type, self.vit_dtype, enabled=self.vit_dtype != torch.float32)
        with half, torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vit):
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

    def token_ids(self, text: str) -> list[int]:
        """Ids of `text` by itself, without BOS or EOS."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.llama_model.get_input_embeddings()(ids.to(self.device))

    def embed_segments(self, segments: Sequence[str | Tensor]) -> Tensor:
        """Text and images in the order given -> embeds (1, T, D_llm).

        Each text is tokenized by itself, so each gets the tokenizer's own leading-space piece, as in the original. BOS
        goes first, unless the first text already begins with it (ChatML with `<|im_start|>` as BOS) or there is none.

        Args:
            segments: texts, and image embeddings (Q, D_llm).
        """
        bos = self.tokenizer.bos_token_id
        parts: list[Tensor] = []
        for i, segment in enumerate(segments):
            if isinstance(segment, Tensor):
                if i == 0 and bos is not None:
                    parts.append(self.embed_ids(torch.tensor([bos])))
                parts.append(segment)
                continue
            ids = self.token_ids(segment)
            if i == 0 and bos is not None and ids[:1] != [bos]:
                ids = [bos, *ids]
            parts.append(self.embed_ids(torch.tensor(ids, dtype=torch.long)))
        dtype = self.llama_model.get_input_embeddings().weight.dtype
        return torch.cat([p.to(dtype) for p in parts])[None]

    def wrap_prompt(self, image_embeds: Tensor, prompt: str) -> Tensor:
        """Put each image between the two halves of `prompt`, split at `<ImageHere>`, after BOS.

        Args:
            image_embeds: (B, Q, D_llm), one image a row.
            prompt: text with exactly one `<ImageHere>`, or empty: BOS and the image alone (stage 1).
        Returns:
            (B, P, D_llm)
        Raises:
            PromptError: `<ImageHere>` is missing or repeated.
        Source: MiniGPT-4, section 3.2; the original's prompt_wrap.
        """
        before, after = split_prompt(prompt) if prompt else ("", "")
        batch, queries, _ = image_embeds.shape
        text = self.embed_segments([before, image_embeds[0], after] if prompt else [image_embeds[0]])  # (1, P, D_llm)
        tail = len(self.token_ids(after)) if prompt else 0
        start = text.shape[1] - tail - queries
        text = text.detach().expand(batch, -1, -1)
        return torch.cat([text[:, :start], image_embeds.to(text.dtype), text[:, start + queries :]], dim=1)

    # -- loss -----------------------------------------------------------------------------------------------------

    def tokenize_texts(self, texts: Sequence[str | Sequence[str]]) -> dict[str, Tensor]:
        """Training texts, each closed by `end_sym` and cut to `max_txt_len`, laid out after a common prefix.

        Args:
            texts: one text a row, or several captions a row, which then share the row's image and prefix.
        Returns:
            input_ids (B, T) padded on the right; attention_mask (B, T); segment (B, T), the number of the caption a
            token belongs to, -1 for padding; position (B, T), the token's place within its caption.
        """
        rows = []
        for captions in texts:
            captions = [captions] if isinstance(captions, str) else captions
            encoded = [self.token_ids(c + self.config.end_sym)[: self.config.max_txt_len] for c in captions]
            rows.append([(token, k, i) for k, ids in enumerate(encoded) for i, token in enumerate(ids)])
        length = max(map(len, rows))
        padding = (self.tokenizer.pad_token_id, -1, 0)
        table = torch.tensor(
            [row + [padding] * (length - len(row)) for row in rows], dtype=torch.long, device=self.device
        )
        ids, segment, position = table.reshape(len(rows), length, 3).unbind(-1)
        return {
            "input_ids": ids,
            "attention_mask": (segment >= 0).long(),
            "segment": segment,
            "position": position,
        }

    def build_inputs(self, samples: dict, prompt: str | None = None) -> dict[str, Tensor]:
        """The sequence [BOS, prompt before, image, prompt after, text] with its labels.

        Args:
            samples: {"image": (B, 3, H, W), "text_input": list[B] of a text or of several captions}.
                May bring "prompts", a list to draw from instead of the model's own.
            prompt: with `<ImageHere>`; None draws one of `prompt_list` for the whole batch, if there is a list.
        Returns:
            inputs_embeds (B, S, D_llm); attention_mask (B, S); labels (B, S), -100 for all but the text and for text
            positions that equal the padding id; source (B, S), the position whose hidden state predicts each label;
            with several captions a row also position_ids (B, S) and a mask (B, 1, S, S) that parts the captions.
        """
        if prompt is None:
            prompts = samples.get("prompts") or self.prompt_list
            prompt = prompts[torch.randint(len(prompts), ()).item()] if prompts else ""
        prefix = self.wrap_prompt(self.encode_img(samples["image"]), prompt)  # (B, P, D_llm)
        text = self.tokenize_texts(samples["text_input"])
        ids, segment = text["input_ids"], text["segment"]
        batch, p = prefix.shape[:2]
        labels = torch.where((segment >= 0) & (ids != self.tokenizer.pad_token_id), ids, -100)
        # A caption's first token is predicted by the prefix's last position, every other by the token before it.
        place = torch.arange(ids.shape[1], device=ids.device) + p
        source = torch.where(text["position"] == 0, p - 1, place - 1)
        inputs = {
            "inputs_embeds": torch.cat([prefix, self.embed_ids(ids)], dim=1),
            "attention_mask": F.pad(text["attention_mask"], (p, 0), value=1),
            "labels": F.pad(labels, (p, 0), value=-100),
            "source": F.pad(source, (p, 0), value=0),
        }
        if (segment > 0).any():
            segments = F.pad(segment, (p, 0), value=-2)  # -2: the prefix, which every caption sees
            same = segments[:, :, None] == segments[:, None, :]
            seen = (same | (segments == -2)[:, None, :]).tril()  # (B, S, S)
            dtype = inputs["inputs_embeds"].dtype
            inputs["attention_mask"] = torch.zeros(seen.shape, dtype=dtype, device=ids.device).masked_fill(
                ~seen, torch.finfo(dtype).min
            )[:, None]
            before = torch.arange(p, device=ids.device).expand(batch, -1)
            inputs["position_ids"] = torch.cat([before, text["position"] + p], dim=1)
        return inputs

    def forward(self, samples: dict) -> dict[str, Tensor]:
        """Mean cross-entropy over the target tokens of the batch: {"loss": scalar}.

        Only hidden states that predict a target meet lm_head: logits for image and prompt tokens are never made.

        Raises:
            PromptError: every label of the batch is masked.
        """
        inputs = self.build_inputs(samples)
        labels, source = inputs.pop("labels"), inputs.pop("source")
        hidden = head_input_hidden_states(self.llama_model, **inputs)  # (B, S, D_llm)
        rows, columns = (labels != -100).nonzero(as_tuple=True)
        if not len(rows):
            raise PromptError(
                "no token of this batch is trained on: every text is empty or made of the padding token "
                f"{self.tokenizer.pad_token!r} alone; look at model.end_sym, model.max_txt_len and the captions"
            )
        # index_select makes the rows contiguous; a strided slice before a bf16 lm_head is slower than all logits.
        picked = hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + source[rows, columns])
        logits = self.llama_model.get_output_embeddings()(picked)  # (targets, V)
        return {"loss": F.cross_entropy(logits.float(), labels[rows, columns])}

    def _check_end_symbol(self) -> None:
        if self.tokenizer.pad_token_id in self.token_ids(self.config.end_sym):
            raise ConfigError(
                f"model.end_sym: {self.config.end_sym!r} is also the padding token, which is never trained on, so "
                "answers would not learn to end; set model.pad_token to another token of the vocabulary"
            )


def split_prompt(prompt: str) -> tuple[str, str]:
    """The halves of `prompt` around its one `<ImageHere>`."""
    if prompt.count(IMAGE_MARK) != 1:
        raise PromptError(f"a prompt needs exactly one {IMAGE_MARK}, this has {prompt.count(IMAGE_MARK)}: {prompt!r}")
    before, after = prompt.split(IMAGE_MARK)
    return before, after


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

"""Make a golden set of other dimensions, from the code that the original was made of.

The reference is not ours: LAVIS's own EVA-ViT and Q-Former, transformers 4.28.1's LLaMA and its slow tokenizer, put
together as MiniGPT-4's first release did. They do not live with this package's versions, so they get a folder of their
own (Python 3.11):

    pip install --no-deps --target REF transformers==4.28.1 tokenizers==0.13.3 huggingface_hub==0.14.1
    pip download --no-deps salesforce-lavis==1.0.2 -d REF && unzip REF/*lavis*.whl 'lavis/models/*' -d REF/lavis_src
    PYTHONPATH=REF python tests/golden/make_set.py REF/lavis_src check tests/golden/data/a   # the reference gives set a
    PYTHONPATH=REF python tests/golden/make_set.py REF/lavis_src make b tests/golden/data/b
    PYTHONPATH=REF python tests/golden/make_set.py REF/lavis_src unk tests/golden/data/a     # chat_unk.npz of set a
"""

import importlib.util
import json
import shutil
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

HERE = Path(__file__).parent / "data"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTIONS = [
    "a small dog is sitting on the grass",
    "a house",
    "the river near a mountain with a very old tree and a large white bird in the blue sky over the water",
    "two people walk",
]
EOS_CAPTIONS = ["a small </s> dog", "the end</s>", "a house", "no end"]
QUESTIONS = ["Describe this image in detail.", "What is near the tree?"]
STAGE2_PROMPT = "###Human: <Img><ImageHere></Img> Describe this image in detail. ###Assistant: "
SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)

# Every width differs from every other, so that no matrix fits where it does not belong. In `c` the variances of the
# ViT's output and of the queries are near the epsilons of the norms that read them: a wrong epsilon is a visible error.
SETS = {
    "b": dict(
        vit=dict(img_size=70, patch_size=14, embed_dim=48, depth=3, num_heads=3, mlp_ratio=4.3637, qkv_bias=True),
        qformer=dict(hidden_size=40, num_hidden_layers=3, num_attention_heads=5, intermediate_size=96,
                     cross_attention_freq=2, num_query_token=6),
        llama=dict(hidden_size=72, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6,
                   rms_norm_eps=1e-5, max_position_embeddings=640),
        scale=1.0, queries=10.0, seed=7, picture=(61, 200),
    ),
    "c": dict(
        vit=dict(img_size=64, patch_size=16, embed_dim=36, depth=1, num_heads=2, mlp_ratio=3.0, qkv_bias=True),
        qformer=dict(hidden_size=56, num_hidden_layers=4, num_attention_heads=7, intermediate_size=80,
                     cross_attention_freq=3, num_query_token=11),
        llama=dict(hidden_size=32, intermediate_size=88, num_hidden_layers=1, num_attention_heads=2,
                   rms_norm_eps=1e-6, max_position_embeddings=512),
        scale=1e-3, queries=1e-3, seed=11, picture=(222, 75),
    ),
}  # fmt: skip


def original_modules(lavis: Path):
    """LAVIS's eva_vit.py and Qformer.py, without the rest of LAVIS."""
    from transformers import modeling_utils, pytorch_utils

    for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        setattr(modeling_utils, name, getattr(pytorch_utils, name))
    stub = types.ModuleType("lavis.common.dist_utils")
    stub.download_cached_file = None
    sys.modules |= {"lavis": types.ModuleType("lavis"), "lavis.common": types.ModuleType("lavis.common")}
    sys.modules["lavis.common.dist_utils"] = stub
    found = []
    for file in ("eva_vit.py", "blip2_models/Qformer.py"):
        spec = importlib.util.spec_from_file_location(Path(file).stem, lavis / "lavis/models" / file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        found.append(module)
    return found


class Original(nn.Module):
    """MiniGPT-4 as first released, on CPU in fp32."""

    def __init__(self, lavis: Path, config: dict, tokenizer: Path):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer
        from transformers.models.bert.configuration_bert import BertConfig

        eva, qformer = original_modules(lavis)
        v, q = config["vit"], config["qformer"]
        sizes = {
            k: v[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
        }
        self.visual_encoder = eva.VisionTransformer(
            **sizes, use_mean_pooling=False, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )
        for unused in ("norm", "fc_norm", "head"):  # the original kept none of them
            if hasattr(self.visual_encoder, unused):
                delattr(self.visual_encoder, unused)
        self.ln_vision = nn.LayerNorm(v["embed_dim"])
        bert = BertConfig(
            hidden_size=q["hidden_size"], num_hidden_layers=q["num_hidden_layers"], vocab_size=100,
            num_attention_heads=q["num_attention_heads"], intermediate_size=q["intermediate_size"],
        )  # fmt: skip
        bert.encoder_width, bert.add_cross_attention = v["embed_dim"], True
        bert.cross_attention_freq, bert.query_length = q["cross_attention_freq"], q["num_query_token"]
        self.Qformer = qformer.BertLMHeadModel(config=bert)
        self.query_tokens = nn.Parameter(torch.zeros(1, q["num_query_token"], q["hidden_size"]))
        self.Qformer.cls = None
        self.Qformer.bert.embeddings.word_embeddings = None
        self.Qformer.bert.embeddings.position_embeddings = None
        for layer in self.Qformer.bert.encoder.layer:
            layer.output = None
            layer.intermediate = None
        self.tokenizer = LlamaTokenizer.from_pretrained(str(tokenizer), use_fast=False)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        known = {k: v for k, v in config["llama"].items() if k != "rope_base"}
        self.llama_model = LlamaForCausalLM(LlamaConfig(**known))
        self.llama_model.requires_grad_(False)
        self.llama_proj = nn.Linear(q["hidden_size"], config["llama"]["hidden_size"])
        self.eval()

    def vision(self, image):
        vit_out = self.visual_encoder.forward_features(image)
        normed = self.ln_vision(vit_out)
        seen = self.Qformer.bert(
            query_embeds=self.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=normed,
            encoder_attention_mask=torch.ones(normed.shape[:-1], dtype=torch.long), return_dict=True,
        )  # fmt: skip
        queries = seen.last_hidden_state
        projected = self.llama_proj(queries)
        return vit_out, normed, queries, projected, torch.ones(projected.shape[:-1], dtype=torch.long)

    def ids(self, text, **options):
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False, **options)

    def embed(self, ids):
        return self.llama_model.model.embed_tokens(ids)

    def inputs(self, image, captions, end_sym, max_txt_len, prompt=""):
        """The original's forward up to the LLM."""
        embeds = self.vision(image)[3]
        batch = len(image)
        if prompt:
            before, after = (self.ids(part).input_ids.expand(batch, -1) for part in prompt.split("<ImageHere>"))
            embeds = torch.cat([self.embed(before), embeds, self.embed(after)], dim=1)
        text = self.ids(
            [c + end_sym for c in captions], padding="longest", truncation=True, max_length=max_txt_len
        )  # fmt: skip
        targets = text.input_ids.masked_fill(text.input_ids == self.tokenizer.pad_token_id, -100)
        empty = torch.full((batch, embeds.shape[1] + 1), -100, dtype=torch.long)
        bos = torch.full((batch, 1), self.tokenizer.bos_token_id)
        return text, {
            "inputs_embeds": torch.cat([self.embed(bos), embeds, self.embed(text.input_ids)], dim=1),
            "attention_mask": torch.cat([torch.ones_like(empty), text.attention_mask], dim=1),
            "labels": torch.cat([empty, targets], dim=1),
        }

    def loss(self, *args):
        _, inputs = self.inputs(*args)
        return self.llama_model(**inputs, return_dict=True).loss


def numpy(**arrays) -> dict:
    return {k: v.detach().numpy() if torch.is_tensor(v) else np.asarray(v) for k, v in arrays.items()}


def record_case(model: Original, image, facts: dict) -> dict:
    text, inputs = model.inputs(image, facts["captions"], facts["end_sym"], facts["max_txt_len"], facts["prompt"])
    out = model.llama_model(**inputs, return_dict=True)
    model.llama_proj.zero_grad()
    out.loss.backward()
    per_token = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="none")
    facts |= {"loss": out.loss.item(), "n_target_tokens": int((inputs["labels"] != -100).sum())}
    extra = {}
    if facts["prompt"]:
        before, after = facts["prompt"].split("<ImageHere>")
        extra = {"prompt_before_ids": model.ids(before).input_ids[0], "prompt_after_ids": model.ids(after).input_ids[0]}
    return numpy(
        input_ids=text.input_ids, text_attention_mask=text.attention_mask, **inputs, logits=out.logits,
        per_token_loss=per_token.reshape(len(image), -1), loss=out.loss,
        grad_llama_proj_weight=model.llama_proj.weight.grad, grad_llama_proj_bias=model.llama_proj.bias.grad, **extra,
    )  # fmt: skip


def record_training(model: Original, images, facts: dict) -> dict:
    """12 steps; the schedule and the parameter groups are the original's."""
    run, captions = facts["run_cfg"], facts["captions"]
    decay, plain = [], []
    model.requires_grad_(False).llama_proj.requires_grad_(True)
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name else decay).append(p)
    groups = [{"params": decay, "weight_decay": run["weight_decay"]}, {"params": plain, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=run["init_lr"], betas=(0.9, 0.999))
    start = {k: v.clone() for k, v in model.llama_proj.state_dict().items()}
    losses, rates = [], []
    total = run["max_epoch"] * run["iters_per_epoch"]
    for step in range(total):
        inner = step % run["iters_per_epoch"]
        if step < run["warmup_steps"]:
            rate = run["warmup_lr"] + (run["init_lr"] - run["warmup_lr"]) * inner / run["warmup_steps"]
        else:
            rate = (run["init_lr"] - run["min_lr"]) * 0.5 * (1.0 + np.cos(np.pi * step / total)) + run["min_lr"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        i = step % len(captions)
        loss = model.loss(torch.from_numpy(images[step % len(images)]), captions[i:] + captions[:i], "\n", 32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate)
    final = {k: v.clone() for k, v in model.llama_proj.state_dict().items()}
    model.llama_proj.load_state_dict(start)
    return numpy(
        images=images, loss=np.array(losses), lr=np.array(rates), final_llama_proj_weight=final["weight"],
        final_llama_proj_bias=final["bias"],
    )  # fmt: skip


def record_images(raw: np.ndarray, size: int) -> dict:
    image, norm = Image.fromarray(raw), transforms.Normalize(MEAN, STD)
    bicubic = InterpolationMode.BICUBIC
    evaluate = transforms.Compose([transforms.Resize((size, size), bicubic), transforms.ToTensor(), norm])
    crop = transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=bicubic)
    torch.manual_seed(123)
    ijhw = crop.get_params(image, list(crop.scale), list(crop.ratio))
    torch.manual_seed(123)
    trained = norm(transforms.ToTensor()(crop(image)))
    return numpy(raw_uint8=raw, eval_out=evaluate(image), train_crop_ijhw=np.array(ijhw), train_out=trained)


@torch.no_grad()
def record_chat(model: Original, image, questions: list[str], steps: int = 20) -> tuple[dict, list[dict]]:
    """Greedy turns; context, logits of every step and ids. The answer keeps its `</s>`, as the original's did."""
    embeds = model.vision(image[None])[3]
    arrays, turns, prompt = {"chat_image": image, "image_emb": embeds}, [], SYSTEM
    for number, question in enumerate(questions, start=1):
        prompt += "###Human: " + ("<Img><ImageHere></Img> " if number == 1 else "") + question + "###Assistant:"
        ids = [
            model.tokenizer(part, return_tensors="pt", add_special_tokens=i == 0).input_ids
            for i, part in enumerate(prompt.split("<ImageHere>"))
        ]
        context = torch.cat([model.embed(ids[0]), embeds, model.embed(ids[1])], dim=1)
        greedy, logits, cache, fed = [], [], None, context
        for _ in range(steps):
            out = model.llama_model(inputs_embeds=fed, past_key_values=cache, use_cache=True, return_dict=True)
            logits.append(out.logits[0, -1])
            cache = out.past_key_values
            greedy.append(int(logits[-1].argmax()))
            if greedy[-1] == model.tokenizer.eos_token_id:
                break
            fed = model.embed(torch.tensor([[greedy[-1]]]))
        raw = model.tokenizer.decode(torch.tensor(greedy), add_special_tokens=False)
        answer = raw.split("###")[0].split("Assistant:")[-1].strip()
        two = torch.stack(logits).topk(2).values
        turns.append(
            {"turn": number, "question": question, "prompt": prompt, "answer_text": answer, "greedy_ids": greedy,
             "min_margin": float((two[:, 0] - two[:, 1]).min()), "context_len": context.shape[1],
             "n_forwards": len(greedy)}
        )  # fmt: skip
        arrays |= {f"turn{number}_seg{i}_ids": part[0] for i, part in enumerate(ids)}
        arrays |= {f"turn{number}_context_embs": context, f"turn{number}_step_logits": torch.stack(logits),
                   f"turn{number}_greedy_ids": np.array(greedy)}  # fmt: skip
        prompt += " " + answer
    return numpy(**arrays), turns


def record(model: Original, meta: dict, image, images, raw, chat_image) -> dict[str, dict]:
    """Every file of a set; `meta` gets the numbers that belong in it."""
    with torch.no_grad():
        names = ("vit_out", "ln_vision_out", "qformer_out", "proj_out", "atts_img")
        files = {"forward": numpy(image=image, **dict(zip(names, model.vision(torch.from_numpy(image)), strict=True)))}
    for case in ("stage1", "stage1_eos_in_text", "stage2"):
        files[case] = record_case(model, torch.from_numpy(image), meta[f"{case}.npz"])
    files["train_run"] = record_training(model, images, meta["train_run"])
    files["image"] = record_images(raw, meta["config"]["vit"]["img_size"])
    files["chat"], meta["chat"] = record_chat(model, torch.from_numpy(chat_image), QUESTIONS)
    return files


def load(lavis: Path, golden: Path) -> tuple[Original, dict, dict]:
    """The model of a set, meta.json, and the arrays of each file."""
    meta, old = json.loads((golden / "meta.json").read_text()), {}
    for file in golden.glob("*.npz"):
        with np.load(file) as archive:
            old[file.stem] = {k: archive[k] for k in archive.files}
    model = Original(lavis, meta["config"], golden / "tokenizer")
    print(model.load_state_dict({k: torch.from_numpy(v) for k, v in old["weights"].items()}))
    return model, meta, old


def make_unk(lavis: Path, golden: Path, seed: int = 380) -> None:
    """A chat about a picture whose first answer has `<unk>` in the middle (one seed of 400), beside the set's own."""
    model, meta, _ = load(lavis, golden)
    size = meta["config"]["vit"]["img_size"]
    image = np.random.default_rng(seed).normal(size=(3, size, size)).astype(np.float32)
    arrays, meta["chat_unk"] = record_chat(model, torch.from_numpy(image), QUESTIONS)
    assert "<unk>" in meta["chat_unk"][0]["answer_text"]
    np.savez_compressed(golden / "chat_unk.npz", **arrays)
    (golden / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def check(lavis: Path, golden: Path) -> float:
    """Record `golden` again from its own weights and inputs. Returns the largest difference."""
    model, meta, old = load(lavis, golden)
    new = record(
        model, meta, old["forward"]["image"], old["train_run"]["images"], old["image"]["raw_uint8"],
        old["chat"]["chat_image"],
    )  # fmt: skip
    worst = 0.0
    for file, arrays in new.items():
        for name, array in arrays.items():
            error = float(np.abs(array.astype(np.float64) - old[file][name].astype(np.float64)).max(initial=0))
            worst = max(worst, error)
            print(f"{file:20} {name:28} {error:.2e}")
    return worst


def make(lavis: Path, name: str, out: Path) -> None:
    """Write set `name`."""
    base, spec = json.loads((HERE / "a/meta.json").read_text()), SETS[name]
    config = {
        "vit": spec["vit"],
        "qformer": spec["qformer"],
        "llama": base["config"]["llama"] | spec["llama"],
        "ln_vision_eps": 1e-5,
    }
    torch.manual_seed(spec["seed"])
    model = Original(lavis, config, HERE / "a/tokenizer")
    with torch.no_grad():
        for key, p in model.named_parameters():
            norm = "norm" in key.lower() or key.startswith("ln_vision")
            p.copy_(torch.randn_like(p) * (0.2 if norm else 0.1) + (1.0 if norm and key.endswith("weight") else 0.0))
        model.query_tokens.mul_(spec["queries"])
        for key, p in model.visual_encoder.named_parameters():
            # the residual stream alone becomes small: what is added to it, not what the norms make of it
            if key in ("cls_token", "pos_embed") or key.startswith("patch_embed") or ".proj." in key or ".fc2." in key:
                p.mul_(spec["scale"])
    size, rng = spec["vit"]["img_size"], np.random.default_rng(spec["seed"])
    image = rng.normal(size=(4, 3, size, size)).astype(np.float32)
    images = rng.normal(size=(3, 4, 3, size, size)).astype(np.float32)
    raw = rng.integers(0, 256, (*spec["picture"], 3), dtype=np.uint8)
    chat_image = rng.normal(size=(3, size, size)).astype(np.float32)
    meta = {k: base[k] for k in ("stage1.npz", "stage2.npz", "stage1_eos_in_text.npz", "train_run")} | {
        "config": config,
        "made_with": {"reference": "salesforce-lavis 1.0.2, transformers 4.28.1", "torch": torch.__version__,
                      "by": f"tests/golden/make_set.py make {name}"},
    }  # fmt: skip
    files = record(model, meta, image, images, raw, chat_image)
    print("variance of the ViT's output:", files["forward"]["vit_out"].var(-1).mean())
    print("smallest margin of a greedy step:", min(turn["min_margin"] for turn in meta["chat"]))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file, arrays in files.items():
        np.savez_compressed(out / f"{file}.npz", **arrays)
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    np.savez_compressed(out / "weights.npz", **state)
    trained = {
        f"llama_proj.{k}": torch.from_numpy(files["train_run"][f"final_llama_proj_{k}"]) for k in ("weight", "bias")
    }
    torch.save({"model": trained, "epoch": 1}, out / "checkpoint_1.pth")
    (out / "meta.json").write_text(json.dumps(meta, indent=1))
    shutil.copytree(HERE / "a/tokenizer", out / "tokenizer")


if __name__ == "__main__":
    torch.set_num_threads(1)
    lavis_folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "check":
        print("largest difference", check(lavis_folder, Path(sys.argv[3])))
    elif what == "unk":
        make_unk(lavis_folder, Path(sys.argv[3]))
    else:
        make(lavis_folder, sys.argv[3], Path(sys.argv[4]))

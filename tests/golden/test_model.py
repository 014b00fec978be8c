"""Parity with the original on golden set `a`: embeddings, labels, loss, gradient, twelve steps of training."""

import numpy as np
import pytest
import torch

from minigpt4.common.optims import linear_warmup_cosine_lr, parameter_groups
from minigpt4.models.eva_vit import encode_tokens

TOLERANCE = 1e-4


def close(ours, theirs, tolerance=TOLERANCE):
    ours = ours.detach().float().numpy() if torch.is_tensor(ours) else np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance


def test_vision_side(tiny_model, golden):
    g = golden("forward")
    image = torch.from_numpy(g["image"])
    with torch.no_grad():
        patches = encode_tokens(tiny_model.visual_encoder, image)
        close(patches, g["vit_out"])
        normed = tiny_model.ln_vision(patches)
        close(normed, g["ln_vision_out"])
        queries = tiny_model.query_tokens.expand(len(image), -1, -1)
        close(
            tiny_model.Qformer(query_embeds=queries, encoder_hidden_states=normed).last_hidden_state,
            g["qformer_out"],
        )
        close(tiny_model.encode_img(image), g["proj_out"])


@pytest.mark.parametrize("case", ["stage1", "stage1_eos_in_text", "stage2"])
def test_loss_and_gradient(case, make_model, golden, meta):
    g, facts = golden(case), meta[f"{case}.npz"]
    model = make_model(max_txt_len=facts["max_txt_len"], end_sym=facts["end_sym"])
    samples = {"image": torch.from_numpy(golden("forward")["image"]), "text_input": facts["captions"]}

    text = model.tokenize_texts(facts["captions"])
    np.testing.assert_array_equal(text["input_ids"], g["input_ids"])
    np.testing.assert_array_equal(text["attention_mask"], g["text_attention_mask"])
    inputs = model.build_inputs(samples, facts["prompt"])
    close(inputs["inputs_embeds"], g["inputs_embeds"])
    np.testing.assert_array_equal(inputs["attention_mask"], g["attention_mask"])
    np.testing.assert_array_equal(inputs["labels"], g["labels"])
    if case == "stage2":
        before, after = facts["prompt"].split("<ImageHere>")
        np.testing.assert_array_equal(model.token_ids(before), g["prompt_before_ids"])
        np.testing.assert_array_equal(model.token_ids(after), g["prompt_after_ids"])

    with torch.no_grad():
        logits = model.llama_model(
            inputs_embeds=inputs["inputs_embeds"], attention_mask=inputs["attention_mask"]
        ).logits
    real = g["attention_mask"] == 1
    close(logits[torch.from_numpy(real)], g["logits"][real])
    per_token = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="none"
    ).reshape(len(logits), -1)
    close(per_token, g["per_token_loss"])

    model.prompt_list = [facts["prompt"]] if facts["prompt"] else []
    loss = model(samples)["loss"]
    close(loss, g["loss"])
    loss.backward()
    close(model.llama_proj.weight.grad, g["grad_llama_proj_weight"])
    close(model.llama_proj.bias.grad, g["grad_llama_proj_bias"])


def test_twelve_training_steps(make_model, golden, meta):
    g, run = golden("train_run"), meta["train_run"]["run_cfg"]
    captions = meta["train_run"]["captions"]
    model = make_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, run["weight_decay"]), lr=run["init_lr"])
    for step in range(12):
        lr = linear_warmup_cosine_lr(
            step,
            total_steps=run["max_epoch"] * run["iters_per_epoch"],
            **{k: run[k] for k in ("init_lr", "min_lr", "warmup_lr", "warmup_steps")},
        )
        assert lr == pytest.approx(g["lr"][step], rel=1e-9)
        for group in optimizer.param_groups:
            group["lr"] = lr
        i = step % 4
        image = torch.from_numpy(g["images"][step % 3])
        loss = model({"image": image, "text_input": captions[i:] + captions[:i]})["loss"]
        close(loss, g["loss"][step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(model.llama_proj.weight, g["final_llama_proj_weight"])
    close(model.llama_proj.bias, g["final_llama_proj_bias"])


def test_opens_the_originals_checkpoint_and_writes_its_names(make_model, golden, golden_dir):
    model = make_model()
    model.load_trained(str(golden_dir / "checkpoint_1.pth"))
    close(model.llama_proj.weight, golden("train_run")["final_llama_proj_weight"])
    assert set(model.trained_state()) == {"llama_proj.weight", "llama_proj.bias"}


def test_a_trained_qformer_keeps_the_published_names(make_model, golden):
    model = make_model(freeze_qformer=False)
    trained = model.trained_state()
    published = {k for k in golden("weights") if k.startswith(("Qformer", "query_tokens", "llama_proj"))}
    assert set(trained) == {k for k in published if not k.endswith("position_ids")}
    np.testing.assert_array_equal(
        trained["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"],
        golden("weights")["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"],
    )

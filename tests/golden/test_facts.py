"""What a golden set tells of the original beside a forward and a chat: schedules, a training, texts, ids, stops.

Where ours is mended (docs/decisions.md), the original's value is mended before comparing.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt4.common.optims import linear_warmup_cosine_lr, parameter_groups
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import VICUNA_V0
from minigpt4.processors.text_processors import BlipCaption
from tests.golden_set import golden_model, read_arrays, read_meta

# The schedules of the published configs: (steps of an epoch, schedule).
SCHEDULES = {
    "stage1": (5000, dict(total_steps=20000, init_lr=1e-4, min_lr=8e-5, warmup_lr=1e-6, warmup_steps=5000)),
    "stage2": (200, dict(total_steps=1000, init_lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=200)),
}


@pytest.mark.parametrize("stage", SCHEDULES)
def test_learning_rates(meta, stage):
    epoch_steps, schedule = SCHEDULES[stage]
    for epoch, iteration, rate in meta["lr"][stage]:
        ours = linear_warmup_cosine_lr(epoch * epoch_steps + iteration, **schedule)
        assert ours == pytest.approx(rate, rel=1e-10)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_steps_of_a_training(golden_dir, tmp_path, name):
    """By meta's `batch_rule`: step i has the captions from the i-th on."""
    golden = golden_dir.parent / name
    arrays, facts = read_arrays(golden, "train_run"), read_meta(golden)["train_run"]
    run, captions = facts["run_cfg"], facts["captions"]
    model = golden_model(golden, tmp_path)
    optimizer = torch.optim.AdamW(parameter_groups(model, run["weight_decay"]), lr=run["init_lr"])
    schedule = {key: run[key] for key in ("init_lr", "min_lr", "warmup_lr", "warmup_steps")}
    for step, (loss, lr) in enumerate(zip(arrays["loss"], arrays["lr"], strict=True)):
        rate = linear_warmup_cosine_lr(step, total_steps=run["max_epoch"] * run["iters_per_epoch"], **schedule)
        if run["iters_per_epoch"] <= step < run["warmup_steps"]:
            rate = float(lr)  # the original's warm-up began anew in every epoch; ours is mended
        assert rate == pytest.approx(lr, rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        i = step % len(captions)
        image = torch.from_numpy(arrays["images"][step % len(arrays["images"])])
        ours = model({"image": image, "text_input": captions[i:] + captions[:i]})["loss"]
        assert ours.item() == pytest.approx(float(loss), abs=1e-4)
        optimizer.zero_grad()
        ours.backward()
        optimizer.step()
    for part in ("weight", "bias"):
        trained = getattr(model.llama_proj, part).detach().numpy()
        assert np.abs(trained - arrays[f"final_llama_proj_{part}"]).max() < 1e-4


def test_captions_and_token_ids(meta, tiny_model):
    for raw, cleaned in meta["caption_processor"]:
        assert BlipCaption()(raw) == cleaned
    for text, ids in meta["tokenizer"]["ids_for_hashes"].items():
        assert tiny_model.token_ids(text) == ids


def test_names_and_shapes_of_a_checkpoint(meta, tiny_model):
    saved = meta["saved_checkpoint"]["model_keys"]
    wanted = {name: shape for name, (shape, _) in saved.items() if name.startswith("llama_proj.")}
    assert {name: list(tensor.shape) for name, tensor in tiny_model.trained_state().items()} == wanted


def test_what_is_kept_of_an_answer(meta, tiny_model):
    chat = Chat(tiny_model, None)
    for case in meta["post_processing"]:
        ids = chat.template.clean_ids(case["generated"])
        assert (ids, chat._text(ids)) == (case["returned_ids"], case["answer"].removesuffix("</s>"))


def test_prompts_of_two_turns(meta, tiny_model):
    chat = Chat(tiny_model, None)
    conv = chat.new_conversation()
    conv.pending = [torch.zeros(1, tiny_model.llama_proj.out_features)]
    for turn, question in (("turn1", "q1"), ("turn2", "q2")):
        chat.ask(question, conv)
        assert conv.prompt() == meta["conversation"][turn]
        conv.turns[-1].answer = "a1"


def test_where_an_answer_stops(meta, tiny_model, golden):
    for case in meta["chat_stop"]:
        # The original's stops are ids; ours are their text, and end at the same token.
        stop = tuple(tiny_model.tokenizer.decode(ids) for ids in case["stops"])
        chat = Chat(tiny_model, None, replace(VICUNA_V0, stop=stop))
        conv = chat.new_conversation()
        chat.upload_img(torch.from_numpy(golden("chat")["chat_image"]), conv)
        chat.ask(meta["chat"][0]["question"], conv)
        _, ids = chat.answer(conv, do_sample=False, max_new_tokens=20)
        assert (ids, VICUNA_V0.clean_text(chat.decode(ids))) == (case["ids"], case["text"])

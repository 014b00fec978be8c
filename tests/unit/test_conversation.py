"""Prompts, decoding and the chat loop, on the tiny golden model."""

import argparse
import json
import threading
import time
from itertools import pairwise

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from minigpt4.common.errors import UserError
from minigpt4.common.registry import CONVERSATIONS
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.conversation.chat import Chat, ChatError, ImageError, read_image
from minigpt4.conversation.generation import Decoding, Detokenizer, StopOnText, presentable
from minigpt4.conversation.prompts import CHATML, VICUNA_V0, ChatState, Turn
from minigpt4.processors.image_processors import Blip2ImageEval
from minigpt4.serve import describe
from minigpt4.tasks import chat_processor

GREEDY = {"do_sample": False, "max_new_tokens": 12}


def picture(seed: int) -> torch.Tensor:
    return torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def chat(tiny_model):
    return Chat(tiny_model, Blip2ImageEval(image_size=56), max_context=512)


def talk(chat: Chat, *questions: str, image: int = 0, **options):
    """A conversation about one picture; the answers' ids."""
    conv, answers = chat.new_conversation(), []
    chat.upload_img(picture(image), conv)
    for question in questions:
        chat.ask(question, conv)
        answers.append(chat.answer(conv, **{**GREEDY, **options})[1])
    return conv, answers


@pytest.fixture
def endless(tiny_model):
    """The model never ends by itself; yields the count of its forward passes."""
    passes = []

    def no_end(module, args, output):
        passes.append(1)
        output.logits[..., [2, 298, 283]] = -1e9  # </s>, ▁###, ##

    hook = tiny_model.llama_model.register_forward_hook(no_end)
    yield passes
    hook.remove()


# ---------------------------------------------------------------------- templates


def test_templates_are_registered():
    assert CONVERSATIONS.get("vicuna_v0") is VICUNA_V0 and CONVERSATIONS.get("chatml") is CHATML


def test_chatml_prompt():
    conv = ChatState(CHATML, [Turn("What is it?", [torch.zeros(1)], "A cat."), Turn("Sure?")])
    assert conv.prompt() == (
        "<|im_start|>user\n<Img><ImageHere></Img> What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_segments_are_cut_at_images_only():
    a, b = torch.zeros(1), torch.ones(1)
    conv = ChatState(VICUNA_V0, [Turn("Is <ImageHere> {text} a mark?", [a, b])])
    first, one, between, two, last = conv.segments()
    assert (one is a, two is b) == (True, True)
    assert first.endswith("my questions.###Human: <Img>") and between == "</Img> <Img>"
    assert last == "</Img> Is <ImageHere> {text} a mark?###Assistant:"


def test_forgotten_turn_leaves_its_image():
    image = torch.zeros(1)
    conv = ChatState(VICUNA_V0, [Turn("q1", [image], "a1"), Turn("q2", answer="a2"), Turn("q3")])
    conv.forget_oldest()
    assert (
        conv.prompt()
        == f"{VICUNA_V0.system}###Human: <Img><ImageHere></Img> q2###Assistant: a2###Human: q3###Assistant:"
    )
    assert len(conv.turns) == 2


@pytest.mark.parametrize(
    "raw, clean",
    [
        (" a dog.###Human: more", "a dog."),
        ("Assistant: x Assistant: a dog. ", "a dog."),
        ("a dog.</s></s>", "a dog."),
        ("a</s> dog", "a</s> dog"),
        ("###", ""),
    ],
)
def test_clean_text(raw, clean):
    assert VICUNA_V0.clean_text(raw, "</s>") == clean


def test_clean_chatml():
    assert CHATML.clean_text("Assistant: yes<|im_end|>", "<|im_end|>") == "Assistant: yes"
    assert CHATML.clean_ids([1, 0, 5]) == [1, 0, 5]
    assert VICUNA_V0.clean_ids([0, 1, 5]) == [5] and VICUNA_V0.clean_ids([1, 0, 5]) == [0, 5]


# ----------------------------------------------------------------------- decoding


@pytest.mark.parametrize("option", ["max_new_tokens", "num_beams", "temperature", "top_p", "repetition_penalty"])
def test_senseless_options_are_named(option):
    with pytest.raises(UserError, match=option):
        Decoding(**{option: 0})


def test_bytes_become_text_one_by_one(tiny_model):
    """A newline after half a character survives (transformers' own decoder loses it)."""
    byte = tiny_model.tokenizer.convert_tokens_to_ids
    ids = [byte("<0xE2>"), byte("<0x0A>"), byte("<0xC3>"), byte("<0xA9>")]
    assert Detokenizer(tiny_model.tokenizer)(ids) == "\ufffd\né"
    assert tiny_model.tokenizer.decode(ids) != "\ufffd\né"


def test_stop_is_found_however_it_is_spelled(tiny_model):
    piece = tiny_model.tokenizer.convert_tokens_to_ids
    stop = StopOnText(Detokenizer(tiny_model.tokenizer), ["###"])
    dog, mark, two, one, byte = piece("▁d"), piece("▁###"), piece("##"), piece("#"), piece("<0x23>")
    spelled = [
        [dog, dog, mark],
        [dog, two, one],
        [one, byte, one],
        [two, dog, one],
        [mark, dog, two],
        [byte, dog, byte],
    ]
    rows = torch.tensor([[dog] * 9 + row for row in spelled])
    assert stop(rows, None).tolist() == [True, True, True, False, True, False]
    assert stop.cut([dog, two, one, 7, 7], eos={2}) == [dog, two, one]
    assert stop.cut([dog, 2, 7], eos={2}) == [dog, 2]
    assert stop.cut([dog, two], eos={2}) == [dog, two]


def test_stop_event_ends_all_rows(tiny_model):
    event = threading.Event()
    stop = StopOnText(Detokenizer(tiny_model.tokenizer), [], event)
    assert stop(torch.tensor([[5], [6]]), None).tolist() == [False, False]
    event.set()
    assert stop(torch.tensor([[5], [6]]), None).tolist() == [True, True]


def test_presentable_holds_back_what_may_become_a_stop():
    assert presentable("a dog##", ["###"]) == "a dog"
    assert presentable("a dog<|im_", ["<|im_end|>", "<|im_start|>"]) == "a dog"
    assert presentable("caf\ufffd", ["###"]) == "caf"
    assert presentable("a #dog", ["###"]) == "a #dog"


# --------------------------------------------------------------------------- chat


def test_questions_and_answers_take_turns(chat):
    conv = chat.new_conversation()
    with pytest.raises(ChatError, match="ask first"):
        chat.answer(conv)
    with pytest.raises(ChatError, match="empty"):
        chat.ask("  ", conv)
    chat.upload_img(picture(0), conv)
    chat.ask("first try", conv)
    chat.ask("second try", conv)
    assert [turn.question for turn in conv.turns] == ["second try"] and len(conv.turns[0].images) == 1


def test_several_images(chat, tiny_model):
    conv = chat.new_conversation()
    chat.upload_img(picture(0), conv)
    chat.upload_img(picture(1)[None], conv)
    chat.ask("Which one?", conv)
    chat.answer(conv, **GREEDY)
    chat.upload_img(picture(2), conv)
    chat.ask("And this?", conv)
    images = [part for part in conv.segments() if not isinstance(part, str)]
    expected = tiny_model.encode_img(torch.stack([picture(i) for i in range(3)]))
    assert torch.allclose(torch.stack(images), expected, atol=1e-5)
    assert conv.prompt().count("<Img><ImageHere></Img> ") == 3


def test_prefix_is_reused_and_changes_nothing(chat, tiny_model):
    fresh = Chat(tiny_model, None, max_context=512, reuse_cache=False)
    questions = ["What is it?", "Why?", "Where?"]
    assert talk(chat, *questions)[1] == talk(fresh, *questions)[1]
    assert chat.cache.reused > 135  # more than the first prompt
    # another picture: only the text before it is common
    before = tiny_model.embed_segments([VICUNA_V0.system + "###Human: <Img>"]).shape[1]
    assert talk(chat, "What is it?", image=1)[1] == talk(fresh, "What is it?", image=1)[1]
    assert chat.cache.reused == before
    # the very same question again must still read its last token
    assert talk(chat, "What is it?", image=1)[1] == talk(fresh, "What is it?", image=1)[1]


def test_a_failed_answer_leaves_no_cache(chat, tiny_model, monkeypatch):
    _, expected = talk(chat, "a", "b")
    conv, _ = talk(chat, "a")
    chat.ask("b", conv)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.llama_model, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(chat.stream_answer(conv, **GREEDY))
    assert conv.waiting and chat.answer(conv, **GREEDY)[1] == expected[1]


def test_old_turns_give_way_but_image_and_bos_stay(chat, tiny_model, endless):
    conv, _ = talk(chat, *"abcd")
    whole = tiny_model.embed_segments(conv.segments()).shape[1]
    small = Chat(tiny_model, None, max_context=whole - 30)
    image = conv.turns[0].images[0]
    small.ask("e", conv)
    small.answer(conv, **GREEDY)
    assert [turn.question for turn in conv.turns] == ["c", "d", "e"]
    assert conv.notices == ["The conversation has grown too long: its first turns (2) are forgotten."]
    context = tiny_model.embed_segments(conv.segments())
    assert torch.equal(context[0, 0], tiny_model.embed_ids(torch.tensor([1]))[0])
    assert conv.turns[0].images[0] is image and conv.prompt().startswith(VICUNA_V0.system)
    chat.ask("f", conv)
    chat.answer(conv, **GREEDY)
    assert conv.notices == [], "there is room again"


def test_no_room_for_the_answer(chat, tiny_model, endless):
    conv = chat.new_conversation()
    chat.upload_img(picture(0), conv)
    chat.ask("a", conv)
    limit = tiny_model.embed_segments(conv.segments()).shape[1] + 7
    small = Chat(tiny_model, None, max_context=limit)
    assert len(small.answer(conv, do_sample=False, max_new_tokens=400)[1]) == 7
    assert conv.notices == ["There is room for an answer of 7 tokens only."]
    with pytest.raises(ChatError, match=f"too long.*{limit} is the limit"):
        talk(small, "a very long question " * 20)


def test_llm_limit_counts(tiny_model):
    assert Chat(tiny_model, None).max_context == tiny_model.llama_model.config.max_position_embeddings


# ------------------------------------------------------------------------- stream


def test_stream_grows_to_the_answer(chat, endless):
    conv, _ = talk(chat, "a", seed=3, do_sample=True)
    expected = conv.turns[0].answer
    conv.turns[0].answer = None
    texts = list(chat.stream_answer(conv, seed=3, max_new_tokens=12))
    assert texts[-1] == expected == conv.turns[0].answer and len(texts) > 4
    assert all(len(a) < len(b) for a, b in pairwise(texts))


def test_leaving_the_stream_stops_generation(chat, endless):
    conv = chat.new_conversation()
    chat.upload_img(picture(0), conv)
    chat.ask("a", conv)
    slow = chat.model.llama_model.register_forward_hook(lambda *_: time.sleep(0.02))
    stream = chat.stream_answer(conv, max_new_tokens=200)
    first = next(stream)
    stream.close()
    slow.remove()
    steps = len(endless)
    assert steps < 10 and conv.turns[0].answer.startswith(first)
    time.sleep(0.1)
    assert len(endless) == steps, "the model runs on after the stream was closed"
    chat.ask("b", conv)
    assert chat.answer(conv, **GREEDY)[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_event_keeps_what_is_there(chat, endless, beams):
    conv = chat.new_conversation()
    chat.upload_img(picture(0), conv)
    chat.ask("a", conv)
    stop = threading.Event()
    stop.set()
    texts = list(chat.stream_answer(conv, stop=stop, max_new_tokens=200, num_beams=beams))
    assert len(endless) <= 2 and conv.turns[0].answer == texts[-1]


def test_beams_come_at_once(chat, endless):
    conv = chat.new_conversation()
    chat.upload_img(picture(0), conv)
    chat.ask("a", conv)
    (text,) = chat.stream_answer(conv, num_beams=3, **GREEDY)
    conv.turns[0].answer = None
    assert chat.answer(conv, num_beams=3, **GREEDY)[0] == text


def test_min_length(chat, tiny_model):
    """With a model that wants to end at once."""

    def end(module, args, output):
        output.logits[..., 2] = 1e9

    forced = tiny_model.llama_model.register_forward_hook(end)
    try:
        assert [len(talk(chat, "a", min_length=n)[1][0]) for n in (1, 2, 5)] == [1, 2, 5]
    finally:
        forced.remove()


def test_seed_repeats_and_leaves_the_process_alone(chat, endless):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sample = {"do_sample": True, "temperature": 2.0}
    one, two, other = (talk(chat, "a", seed=s, **sample)[1] for s in (1, 1, 2))
    assert one == two != other
    assert torch.rand(1) == expected


# -------------------------------------------------------------------------- batch


def test_batch_equals_one_by_one(chat, tiny_model):
    questions = ["a", "What is near the tree?", "Describe this image in detail, please.", "b"]
    alone = [talk(chat, q, image=i)[0].turns[0].answer for i, q in enumerate(questions)]
    images = [picture(i) for i in range(4)]
    assert chat.answer_batch(images, questions, **GREEDY) == alone
    assert chat.answer_batch([], "a") == []
    with pytest.raises(ChatError, match="4 images but 2 questions"):
        chat.answer_batch(images, ["a", "b"])


def test_batch_with_penalty_and_padding(chat):
    questions = ["a", "Describe this image in detail, please, as well as you can."]
    options = {"repetition_penalty": 1.8, "do_sample": False, "max_new_tokens": 40}
    alone = [talk(chat, q, image=0, **options)[0].turns[0].answer for q in questions]
    assert chat.answer_batch([picture(0)] * 2, questions, **options) == alone


def test_batch_rows_stop_by_themselves(chat, tiny_model):
    """Row 0 ends with ### at its third token, row 1 goes on."""
    step = []

    def force(module, args, output):
        step.append(1)
        output.logits[:, -1] = -1e9
        output.logits[:, -1, 269] = 0  # "▁a"
        if len(step) == 3:
            output.logits[0, -1, 298] = 1  # "▁###"

    hook = tiny_model.llama_model.register_forward_hook(force)
    try:
        rows = chat.answer_batch([picture(0)] * 2, "a", **GREEDY)
    finally:
        hook.remove()
    assert rows == ["a a", " ".join("a" * 12)]


# ----------------------------------------------------------- images, devices, verbs


def test_unreadable_images(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    for name, said in [
        ("text.png", "not an image"),
        ("gone.jpg", "cannot be read: No such file"),
        ("half.jpg", "damaged"),
        ("", "cannot be read: Is a directory"),
    ]:
        with pytest.raises(ImageError, match=said) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    assert read_image(tmp_path / "whole.jpg").size == (64, 64)


def test_chat_sees_as_the_config_says():
    def config(**processor):
        train = ProcessorConfig(**processor) if processor else None
        return Config(ModelConfig(image_size=64), {"any": DatasetConfig(vis_processor=ProcessorsConfig(train=train))})

    image = Image.effect_noise((90, 70), 80)
    expected = Blip2ImageEval(64, (0.5,) * 3, (0.5,) * 3)(image)
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for name in ("blip2_image_eval", "blip2_image_train"):  # no random crops in a chat
        assert torch.equal(chat_processor(config(name=name, **half))(image), expected)
    assert torch.equal(chat_processor(config())(image), Blip2ImageEval(64)(image))


def describe_args(*images, **changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    describe.add_arguments(parser)
    args = parser.parse_args([*map(str, images)])
    vars(args).update(changes)
    return args


def test_describe(chat, tmp_path, capsys):
    Image.effect_noise((80, 60), 90).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", tmp_path / "gone.png", tmp_path / "a.png"]
    code = describe.describe(chat, describe_args(*images, json=True, max_new_tokens=12))
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert code == 1 and f"{tmp_path / 'gone.png'}: cannot be read: No such file" in err
    assert list(first) == ["image", "prompt", "answer", "tokens", "seconds"]
    assert first["prompt"] == "Describe this image in detail." and 1 <= first["tokens"] <= 12
    assert first["answer"] == second["answer"], "the same picture and seed"

    code = describe.describe(chat, describe_args(images[0], greedy=True, max_new_tokens=12))
    plain = capsys.readouterr().out
    conv = chat.new_conversation()
    chat.upload_img(images[0], conv)
    chat.ask("Describe this image in detail.", conv)
    assert code == 0 and plain == chat.answer(conv, **GREEDY)[0] + "\n"


def test_demo_without_gpu():
    import demo

    with pytest.raises(UserError, match=r"--gpu-id 0.*--device cpu"):
        demo.main(["--cfg-path", "none.yaml", "--gpu-id", "0"])


@pytest.mark.parametrize("key", ["temperature", "repetition_penalty"])
def test_the_chats_own_decoding_is_used_unless_a_call_names_another(tiny_model, key):
    chat = Chat(tiny_model, None, **{key: 0.2})
    assert getattr(chat._decoding({}), key) == 0.2
    assert getattr(chat._decoding({key: 1.5}), key) == 1.5
    assert getattr(Chat(tiny_model, None)._decoding({}), key) == 1.0


@pytest.mark.parametrize(
    ("default", "options"),
    [
        ({"repetition_penalty": 0.01}, GREEDY),
        ({"suppress_tokens": "first"}, GREEDY),
        ({"bad_words_ids": ["first"]}, GREEDY),
        ({"forced_eos_token_id": 7}, GREEDY),
        ({"min_p": 0.99}, {"do_sample": True, "max_new_tokens": 12, "seed": 3}),
        ({"max_length": 3, "max_time": 0.0}, GREEDY),
    ],
    ids=lambda value: next(iter(value)),
)
def test_defaults_of_the_llms_folder_change_no_answer(chat, tiny_model, endless, monkeypatch, default, options):
    _, (ids,) = talk(chat, "What is it?", **options)
    first = {"suppress_tokens": ids[:1], "bad_words_ids": [ids[:1]]}
    default = {key: first.get(key, value) for key, value in default.items()}
    monkeypatch.setattr(tiny_model.llama_model, "generation_config", GenerationConfig(**default))
    assert talk(chat, "What is it?", **options)[1] == [ids]


def test_what_ends_an_answer_is_the_llms_own(chat, tiny_model, monkeypatch):
    _, (ids,) = talk(chat, "What is it?")
    own = GenerationConfig(eos_token_id=[2, ids[4]])
    monkeypatch.setattr(tiny_model.llama_model, "generation_config", own)
    assert talk(chat, "What is it?")[1] == [ids[: ids.index(ids[4]) + 1]]
    assert tiny_model.llama_model.generation_config is own

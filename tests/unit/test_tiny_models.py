"""The small model's own model classes: several texts behind one image, and the warm start by words."""

import dataclasses

import pytest
import torch

from minigpt4.common.errors import ConfigError
from recipes.tiny.captions import MiniGPT4Captions
from recipes.tiny.words import MiniGPT4Words
from tests.made import loss_and_gradient

CAPTIONS = ["a small dog is sitting on the grass", "a house", "the river near a mountain", "two people walk"]


@pytest.fixture
def image(golden):
    return torch.from_numpy(golden("forward")["image"])  # (4, 3, 56, 56)


# -- several captions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "###Human: <Img><ImageHere></Img> Describe this. ###Assistant: "])
def test_captions_that_share_an_image_are_as_good_as_rows_of_their_own(make_model, image, prompt):
    model = MiniGPT4Captions(make_model().config)
    model.prompt_list = [prompt] if prompt else []
    packed = {"image": image[:2], "text_input": [CAPTIONS[:3], CAPTIONS[3:]]}
    apart = {"image": image[[0, 0, 0, 1]], "text_input": CAPTIONS}
    loss, gradient = loss_and_gradient(model, packed)
    loss_apart, gradient_apart = loss_and_gradient(model, apart)
    assert loss == pytest.approx(loss_apart, abs=1e-5)
    assert (gradient - gradient_apart).abs().max() < 1e-5
    assert gradient.abs().max() > 1e-3
    assert model.build_batch(packed)["input_ids"].numel() < model.build_batch(apart)["input_ids"].numel()


def test_captions_of_a_pack_do_not_see_each_other(make_model, image):
    """The loss of two captions in a pack is the mean of theirs alone, weighted by their tokens."""
    model = MiniGPT4Captions(make_model().config)

    def one(captions):
        samples = {"image": image[:1], "text_input": [captions]}
        labels = len(model.build_batch(samples)["target_ids"])
        return model(samples)["loss"].item() * labels, labels

    with torch.no_grad():
        both, parts = one(CAPTIONS[:2]), [one([c]) for c in CAPTIONS[:2]]
    assert both[1] == parts[0][1] + parts[1][1]
    assert both[0] == pytest.approx(parts[0][0] + parts[1][0], abs=1e-4)


def test_with_one_caption_a_row_it_is_the_plain_model(make_model, image):
    plain = make_model()
    several, samples = MiniGPT4Captions(plain.config), {"image": image, "text_input": CAPTIONS}
    assert torch.equal(*(m.build_batch(samples)["target_positions"] for m in (plain, several)))
    assert loss_and_gradient(several, samples)[0] == pytest.approx(loss_and_gradient(plain, samples)[0], abs=1e-5)
    assert list(several.trained_state()) == list(plain.trained_state())


def test_questions_that_share_an_image_are_as_good_as_conversations_of_their_own(make_model, image):
    """The loss is that of the answers alone, each after its own question as the chat asks it."""
    config = make_model(prompt_template="###Human: {} ###Assistant: ").config
    plain, packed = make_model(prompt_template=config.prompt_template), MiniGPT4Captions(config)
    questions, answers = ["What color is the dog?", "Who is it?", "Where are they?"], ["Black.", "A man.", "In snow."]
    pairs = [*zip(questions, answers, strict=True)]
    loss, gradient = loss_and_gradient(packed, {"image": image[:2], "text_input": [pairs[:2], pairs[2:]]})
    apart = {"image": image[[0, 0, 1]], "prompt": questions, "text_input": answers}
    loss_apart, gradient_apart = loss_and_gradient(plain, apart)
    assert loss == pytest.approx(loss_apart, abs=1e-5)
    assert (gradient - gradient_apart).abs().max() < 1e-5
    assert gradient.abs().max() > 1e-3


# -- words --------------------------------------------------------------------------------------------------------


@pytest.fixture
def words_model(make_model, tmp_path):
    (tmp_path / "words.txt").write_text("dog\nhouse\nriver\n")
    config = make_model(extra={"words": str(tmp_path / "words.txt")}, freeze_qformer=False).config
    return MiniGPT4Words(config)


def test_the_words_of_the_captions_are_what_is_wanted(words_model):
    table = words_model.targets([["A Dog in a house.", "a dog, dog"], ["nothing known"]])
    dog, house = ({words_model.column[t] for t in words_model.words[w]} for w in ("dog", "house"))
    shared = [(c in dog | house) + (c in dog) for c in range(table.shape[1])]  # in one caption both, in one the dog
    assert table[0].tolist() == pytest.approx([n / sum(shared) for n in shared])
    assert 0 < sum(shared) > max(shared)
    assert table[1].sum() == 0


def test_a_query_on_a_word_says_that_word(words_model, monkeypatch):
    """The loss is near 0 when every query lies on the wanted embedding, and high when it lies on another."""
    said = words_model.column[words_model.words["dog"][-1]]
    query = words_model.vocabulary[said]
    longer = query * 4 * words_model.vocabulary.norm(dim=1).mean() / query.norm()
    monkeypatch.setattr(words_model, "encode_img", lambda image: longer.expand(1, 4, -1))
    losses = []
    for wanted in (said, 1 - min(said, 1)):
        row = torch.eye(len(words_model.column))[[wanted]]
        monkeypatch.setattr(words_model, "targets", lambda texts, row=row: row)
        losses.append(words_model({"image": None, "text_input": [""]})["loss"].item())
    assert losses[0] < 0.1 < 5 < losses[1]


def test_the_warm_start_trains_the_projection_and_the_queries(words_model, golden):
    image = torch.from_numpy(golden("forward")["image"])
    words_model({"image": image, "text_input": ["a dog", "a house", ["the river", "a dog"], "a dog"]})[
        "loss"
    ].backward()
    for name in ("llama_proj.weight", "query_tokens"):
        assert words_model.trained_tensors()[name].grad.abs().max() > 0


def test_a_file_of_words_is_needed(make_model, tmp_path):
    config = make_model().config
    with pytest.raises(ConfigError, match=r"model\.extra\.words: None should be a text file"):
        MiniGPT4Words(config)
    with pytest.raises(ConfigError, match=r"model\.extra\.words: '.*none\.txt' should be a text file"):
        MiniGPT4Words(dataclasses.replace(config, extra={"words": str(tmp_path / "none.txt")}))

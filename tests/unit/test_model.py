"""What MiniGPT4 promises beyond the golden numbers: packing, freezing, prompts, any vision model."""

import dataclasses

import pytest
import torch

from minigpt4.common.checkpoint import atomic_save, read_state, save_weights
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.optims import parameter_groups
from minigpt4.common.schema import QFormerConfig
from minigpt4.models import unpadded
from minigpt4.models.batch import PromptError, full_labels
from minigpt4.models.eva_vit import create_vit, encode_tokens
from minigpt4.models.prompting import read_prompts, split_prompt
from tests.made import loss_and_gradient

CAPTIONS = ["a small dog is sitting on the grass", "a house", "the river near a mountain", "two people walk"]


@pytest.fixture
def image(golden):
    return torch.from_numpy(golden("forward")["image"])  # (4, 3, 56, 56)


def test_a_text_is_cut_with_its_end_symbol(make_model, image):
    model = make_model(max_txt_len=6, end_sym="###")
    batch = model.build_batch({"image": image[:2], "text_input": ["a house", CAPTIONS[0]]})
    end = model.token_ids("###")[-1]
    ids = [[i for i in row.tolist() if i != -100] for row in full_labels(batch)]
    assert ids[0] == model.token_ids("a house###")[:6]
    assert ids[1] == model.token_ids(CAPTIONS[0] + "###")[:6] and ids[1][-1] != end


def test_a_padded_row_is_as_good_as_the_row_alone(make_model, image):
    model = make_model()
    texts = [CAPTIONS[2], "a"]

    def total(rows):
        """The summed loss of these rows as one batch."""
        samples = {"image": image[rows], "text_input": [texts[r] for r in rows]}
        return model(samples)["loss"].item() * len(model.build_batch(samples)["target_ids"])

    with torch.no_grad():
        assert total([0, 1]) == pytest.approx(total([0]) + total([1]), abs=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_leaving_the_padding_out_changes_neither_loss_nor_gradient(make_model, image, monkeypatch, attention):
    model, samples = make_model(attn_implementation=attention), {"image": image, "text_input": CAPTIONS}
    widths = []
    gate = model.llama_model.model.layers[0].mlp.gate_proj
    gate.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[:-1].numel()))
    loss, gradient = loss_and_gradient(model, samples)
    model.llama_model.set_attn_implementation(attention)
    padded_loss, padded_gradient = loss_and_gradient(model, samples)
    batch = model.build_batch(samples)
    assert widths == [batch["attention_mask"].sum(), batch["attention_mask"].numel()] and widths[0] < 0.9 * widths[1]
    assert loss == pytest.approx(padded_loss, abs=1e-6)
    assert (gradient - padded_gradient).abs().max() < 1e-6 < gradient.abs().max()

    # A naive pack, in which rows see those before them, learns something else.
    real, embeds = batch["real_positions"], model.embed_batch(batch).flatten(0, 1)
    hidden = torch.zeros_like(embeds)
    hidden[real] = model.llama_model.get_decoder()(inputs_embeds=embeds[real][None]).last_hidden_state[0]
    monkeypatch.setattr(model, "read_batch", lambda batch: hidden.view(*batch["input_ids"].shape, -1))
    assert abs(model(samples)["loss"].item() - loss) > 1e-2


def test_an_llm_with_a_sliding_window_keeps_its_padding(make_model):
    model = make_model()
    model.llama_model.set_attn_implementation("eager")
    model.llama_model.config.sliding_window = 4
    unpadded.leave_padding_out(model.llama_model)
    assert model.llama_model.config._attn_implementation == "eager"


# -- frozen -------------------------------------------------------------------------------------------------------


def test_frozen_means_frozen(make_model, image):
    model = make_model()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"llama_proj.weight", "llama_proj.bias"}
    model.train()
    assert model.training and model.llama_proj.training
    for part in (model.visual_encoder, model.ln_vision, model.Qformer, model.llama_model):
        assert not any(m.training for m in part.modules())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-2)
    model({"image": image, "text_input": CAPTIONS})["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.llama_proj.parameters()}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained


def test_an_unfrozen_qformer_gets_gradients_everywhere(make_model, image):
    """DDP stops at a trained parameter without a gradient; and dropout must be on."""
    model = make_model(freeze_qformer=False)
    model.train()
    assert model.Qformer.training and not model.visual_encoder.training and not model.llama_model.training
    model({"image": image, "text_input": CAPTIONS})["loss"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert "query_tokens" in trained and len(trained) > 20
    assert [n for n, p in trained.items() if p.grad is None] == []


def test_an_unfrozen_vit(make_model, image):
    model = make_model(freeze_vit=False)
    model({"image": image, "text_input": CAPTIONS})["loss"].backward()
    assert model.visual_encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert model.ln_vision.weight.grad is not None
    assert not model.Qformer.training


def test_gradient_checkpointing_recomputes_and_changes_nothing(make_model, image):
    samples = {"image": image, "text_input": CAPTIONS}
    loss, gradient = loss_and_gradient(make_model(), samples)
    model = make_model(use_grad_checkpoint=True)
    calls = []
    model.llama_model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    again, gradient_again = loss_and_gradient(model, samples)
    assert len(calls) == 2  # forward, and once more in backward
    assert again == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(gradient, gradient_again, atol=1e-6)
    assert not model.llama_model.get_decoder().layers[0].self_attn.training
    model.eval()
    calls.clear()
    loss_and_gradient(model, samples)
    assert len(calls) == 1


# -- sequences ----------------------------------------------------------------------------------------------------


def test_bos_stands_first_and_once(make_model):
    model = make_model()
    bos = model.tokenizer.bos_token_id
    table = model.llama_model.get_input_embeddings().weight
    picture = torch.zeros(3, table.shape[1])

    def ids(*segments):
        """Ids of the embeddings, None for image positions."""
        rows = model.embed_segments(segments)[0]
        return [None if not r.any() else (table == r).all(1).nonzero()[0].item() for r in rows]

    dog = model.token_ids("dog")
    assert bos not in dog
    assert ids("dog") == [bos, *dog]
    assert ids("dog", picture, "dog") == [bos, *dog, None, None, None, *dog]  # not before the second text
    assert ids(picture, "dog") == [bos, None, None, None, *dog]
    assert ids("", picture) == [bos, None, None, None]
    model.tokenizer.bos_token = model.tokenizer.convert_ids_to_tokens(dog[0])  # as ChatML's <|im_start|>
    assert ids("dog", picture) == [*dog, None, None, None]
    model.tokenizer.bos_token = None
    assert ids("dog") == dog
    assert ids(picture) == [None, None, None]


def test_the_image_goes_where_its_tag_was(make_model, image):
    model = make_model()
    image_embeds = model.encode_img(image)
    prompt = "###Human: <Img><ImageHere></Img> Hi. ###Assistant: "
    samples = {"image": image, "text_input": CAPTIONS, "prompts": [prompt]}
    out = model.embed_batch(model.build_batch(samples))
    at = 1 + len(model.token_ids("###Human: <Img>"))
    assert torch.equal(out[:, at : at + image_embeds.shape[1]], image_embeds)
    out.sum().backward()
    assert model.llama_proj.weight.grad is not None
    plain = model.embed_batch(model.build_batch({"image": image, "text_input": CAPTIONS}))
    assert torch.equal(plain[:, 1 : 1 + image_embeds.shape[1]], image_embeds)
    table = model.llama_model.get_input_embeddings().weight
    after = model.token_ids("</Img> Hi. ###Assistant: ") + model.token_ids(CAPTIONS[0])
    start = at + image_embeds.shape[1]
    assert torch.equal(out[0, start : start + len(after)], table[after])


def test_each_sample_may_bring_its_own_instruction(make_model, image):
    """A batch of questions of different lengths is as good as each alone; keys that the model does not know pass."""
    model = make_model()
    model.config = dataclasses.replace(model.config, prompt_template="###Human: {} ###Assistant: ")
    questions = ["What is it?", "<Img><ImageHere></Img> Is the small dog near the old house?"]
    answers = ["a dog", "yes"]

    def loss(rows):
        samples = {"image": image[rows], "prompt": [questions[r] for r in rows], "answer_type": ["x"] * len(rows)}
        samples["text_input"] = [answers[r] for r in rows]
        return model(samples)["loss"].item() * len(model.build_batch(samples)["target_ids"])

    with torch.no_grad():
        assert loss([0, 1]) == pytest.approx(loss([0]) + loss([1]), abs=1e-4)
        same = {"image": image[:1], "text_input": ["a dog"]}
        drawn = model({**same, "prompts": ["###Human: <Img><ImageHere></Img> What is it? ###Assistant: "]})["loss"]
        assert model({**same, "prompt": ["What is it?"]})["loss"] == drawn
    one_prompt = [{**same, "prompt": [q]} for q in questions[:1]]
    assert torch.equal(model.build_batch(one_prompt[0])["input_ids"][0, :1], torch.tensor([1]))  # BOS


@pytest.mark.parametrize("prompt", ["Describe this.", "<ImageHere> and <ImageHere>"])
def test_a_prompt_needs_one_image(tiny_model, image, prompt):
    with pytest.raises(PromptError, match=r"exactly one <ImageHere>, this has [02]"):
        tiny_model.build_batch({"image": image[:1], "text_input": ["a"], "prompts": [prompt]})
    with pytest.raises(PromptError):
        split_prompt(prompt)


def test_prompts_from_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("<Img><ImageHere></Img> One. \n\n  <Img><ImageHere></Img> Two.\nno image here\n")
    assert read_prompts(str(file), "###Human: {} ###Assistant: ") == [
        "###Human: <Img><ImageHere></Img> One. ###Assistant: ",
        "###Human: <Img><ImageHere></Img> Two. ###Assistant: ",
    ]
    file.write_text("nothing\n")
    with pytest.raises(ConfigError, match=r"model\.prompt_path: no line of .*prompts\.txt holds <ImageHere>"):
        read_prompts(str(file), "{}")


def test_the_prompts_that_ship_are_the_originals(meta):
    assert read_prompts("prompts/alignment.txt", "###Human: {} ###Assistant: ") == meta["prompt_list"]


def test_one_prompt_is_drawn_for_each_batch(make_model, image):
    model = make_model()
    model.prompt_list = ["<ImageHere>", "a house <ImageHere>"]
    torch.manual_seed(0)
    samples = {"image": image, "text_input": CAPTIONS}
    assert len({model.build_batch(samples)["input_ids"].shape for _ in range(12)}) == 2


# -- refusals -----------------------------------------------------------------------------------------------------


def test_an_end_symbol_that_is_the_padding_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"model\.end_sym: '</s>' is also the padding token, .*set model\.pad_token"):
        make_model(end_sym="</s>", pad_token="</s>")
    assert make_model(end_sym="</s>").tokenizer.pad_token == "<unk>"  # found by itself
    assert make_model(end_sym="###").tokenizer.pad_token == "</s>"  # EOS, as in the original
    with pytest.raises(ConfigError, match=r"model\.pad_token: '\[PAD\]' is not a token of"):
        make_model(pad_token="[PAD]")


@pytest.mark.parametrize("texts", [["", ""], ["</s>", "</s></s>"], [[], [""]]])
def test_a_batch_without_a_target_is_refused(make_model, image, texts):
    model = make_model(end_sym="")
    pad = model.tokenizer.pad_token_id
    model.token_ids = lambda texts: [[pad] * text.count("</s>") for text in texts]  # no space piece either
    with pytest.raises(PromptError, match="no token of this batch is trained on"):
        model({"image": image[:2], "text_input": texts})


def test_weights_that_do_not_fit_are_named(make_model, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"(?s)eva_vit_g\.pth does not fit this model.*other shape: .*bias is \(64,\) in the file and \(32,\)",
    ):
        make_model(vit_kwargs={"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4})
    with pytest.raises(CheckpointError, match=r"(?s)blip2_pretrained\.pth does not fit.*missing: .*Qformer"):
        make_model(qformer_kwargs=QFormerConfig(64, 4, 4, 128, 1))
    with pytest.raises(CheckpointError, match=r"model\.llama_model: .* has no config\.json"):
        make_model(llama_model=str(tmp_path))


def test_a_checkpoint_must_hold_the_projection(make_model, tmp_path):
    model = make_model()
    shape = model.llama_proj.weight.shape
    file = tmp_path / "c.pth"
    atomic_save({"model": {"llama_proj.weight": torch.zeros(shape)}}, file)
    with pytest.raises(CheckpointError, match=r"missing: llama_proj\.bias$"):
        model.load_trained(str(file))
    assert model.llama_proj.weight.any()  # nothing was copied
    partly = {"query_tokens": torch.zeros_like(model.query_tokens), "ln_vision.bias": torch.ones(1)}
    save_weights(model.trained_state() | partly, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing: ln_vision\.weight.*other shape: ln_vision\.bias"):
        model.load_trained(str(tmp_path / "c.safetensors"))


# -- any vision model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "tokens"),
    [
        ("test_vit", {}, 17),  # 4 x 4 patches of 16 and CLS
        ("test_efficientnet", {}, 4),
        ("test_resnet", {}, 4),
        ("test_convnext", {}, 4),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}, 64),
        ("eva_clip_g", {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 16}, 17),
    ],
)
def test_any_timm_model_gives_tokens(name, kwargs, tokens):
    vit = create_vit(name, 64, **kwargs).eval()
    with torch.no_grad():
        out = encode_tokens(vit, torch.randn(2, 3, 64, 64))
    assert out.shape == (2, tokens, vit.num_features)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_feature_map_is_read_row_by_row(layout):
    class Net:
        output_fmt = layout

        def forward_features(self, image):
            return image if layout == "NCHW" else image.permute(0, 2, 3, 1)

    feature_map = torch.arange(24.0).reshape(1, 2, 3, 4)
    tokens = encode_tokens(Net(), feature_map)
    assert tokens.shape == (1, 12, 2)
    assert tokens[0, :, 0].tolist() == list(range(12))


def test_a_vision_model_that_is_none():
    with pytest.raises(ConfigError, match=r"model\.vit_model: 'test_vitt' is neither .*; did you mean 'test_vit'\?"):
        create_vit("test_vitt", 64)
    for name in ("test_vit", "eva_clip_g"):
        with pytest.raises(ConfigError, match=rf"model\.vit_kwargs: .*'depht'.* does not suit {name}"):
            create_vit(name, 64, depht=2)


def test_a_cnn_stands_in_and_its_statistics_are_kept(make_model, image, tmp_path):
    cnn = dict(vit_model="test_efficientnet", vit_kwargs={}, vit_ckpt=None, q_former_model=None, ckpt=None)
    frozen = make_model(**cnn)
    before = {k: v.clone() for k, v in frozen.visual_encoder.state_dict().items()}
    samples = {"image": image, "text_input": CAPTIONS}
    frozen(samples)["loss"].backward()
    assert all(torch.equal(v, before[k]) for k, v in frozen.visual_encoder.state_dict().items())  # batch-norm stands

    model = make_model(**cnn, freeze_vit=False, freeze_qformer=False)
    model(samples)
    moved = model.trained_state()
    assert any(k.endswith("running_mean") for k in moved)
    atomic_save({"model": moved}, tmp_path / "c.pth")
    again = make_model(**{**cnn, "ckpt": str(tmp_path / "c.pth")}, freeze_vit=False, freeze_qformer=False).eval()
    assert set(read_state(tmp_path / "c.pth")) == set(again.trained_state())
    with torch.no_grad():
        assert torch.equal(model.eval()(samples)["loss"], again(samples)["loss"])

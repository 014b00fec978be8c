"""The warm start: which words count, what its loss asks for, and the checkpoint that stage 1 takes."""

import json
import math

import pytest
import torch
import yaml

from minigpt4 import cli
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import load_config
from minigpt4.models.adapters import create_projection
from minigpt4.tasks.image_text_pretrain import build_model
from minigpt4.tasks.warm_start import fit, settle, token_targets, words_loss
from tests.training import COLOURS, picture


def test_a_token_of_every_caption_says_nothing_and_a_rare_one_most():
    ids, table = token_targets([{7, 3, 5}, {7, 3}, {7, 3}, {7, 9}])
    assert ids.tolist() == [3, 5, 7, 9]
    rare, often = math.log(4), math.log(4 / 3)
    assert table[0].tolist() == pytest.approx([often / (rare + often), rare / (rare + often), 0, 0])
    assert table[1].tolist() == pytest.approx([1, 0, 0, 0])
    assert table[3].tolist() == pytest.approx([0, 0, 0, 1])
    assert token_targets([{1}, {1}])[1].tolist() == [[0], [0]]  # nothing tells these captions apart


def test_the_loss_asks_that_each_word_has_a_query_near_it():
    words = 2 * torch.eye(4)  # four words, at right angles
    both = torch.tensor([[0.5, 0.5, 0, 0]])
    apart, same, wrong = words[None, [0, 1]], words[None, [0, 0]], words[None, [2, 3]]
    sure, unsure = -math.log(1 / (1 + 3 * math.exp(-12))), -math.log(math.exp(-12) / (1 + 3 * math.exp(-12)))
    assert words_loss(apart, words, both) == pytest.approx(sure + math.log(2), abs=1e-4)
    assert words_loss(same, words, both) == pytest.approx((sure + unsure) / 2, abs=1e-4)
    assert words_loss(wrong, words, both) == pytest.approx(unsure, abs=0.7)
    assert words_loss(5 * apart, 5 * words, both) == pytest.approx(sure + math.log(2), abs=1e-4)  # whatever its length


@pytest.mark.parametrize("layers", [1, 3])
def test_queries_come_to_lie_on_the_words_that_they_tell(layers, tmp_path):
    """Each picture has one of four words in its first query and one of two others in its second."""
    torch.manual_seed(0)
    first, second = torch.arange(64) % 4, 4 + torch.arange(64) // 4 % 2
    kinds, vocabulary = 3 * torch.randn(6, 24), 3 * torch.linalg.qr(torch.randn(16, 6))[0].T
    queries = (kinds[torch.stack([first, second], 1)] + 0.1 * torch.randn(64, 2, 24)).half()
    rows = [{a, b} for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    projection = create_projection(24, 16, layers)
    assert fit(projection, queries, token_targets(rows)[1], vocabulary, 200, tmp_path) == 200
    settle(projection, queries, token_targets(rows)[1], vocabulary)
    with torch.no_grad():
        lies = projection(queries.float())
    for query, word in ((0, first), (1, second)):
        assert torch.cosine_similarity(lies[:, query], vocabulary[word]).min() > 0.9
    length = 1.4 * vocabulary.norm(dim=1).mean()
    assert lies.square().sum(-1).mean().sqrt() == pytest.approx(length.item(), rel=0.01)


@pytest.fixture
def stage1(lay_published, tmp_path):
    """A stage-1 config over pictures in four colours, whose model.ckpt does not exist yet."""
    rows = []
    for i in range(24):
        colour = list(COLOURS)[i % 4]
        picture(colour, i).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"a {colour} ball"})
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = lay_published(tmp_path / "published")
    seen = {"train": {"name": "blip2_image_eval", "image_size": files["image_size"]}}
    photos = {"build_info": {"storage": str(tmp_path / "photos.jsonl")}, "vis_processor": seen}
    config = {
        "model": {
            **files, "qformer_kwargs": vars(files["qformer_kwargs"]),
            "ckpt": str(tmp_path / "warm_start/checkpoint_0.pth"),
        },
        "datasets": {"captioned_photos": photos},
        "run": {"output_dir": str(tmp_path / "stage1"), "batch_size_train": 5, "num_workers": 0, "device": "cpu"},
    }  # fmt: skip
    (tmp_path / "stage1.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "stage1.yaml"


def test_it_writes_what_stage_1_begins_with(stage1, tmp_path, capsys):
    command = ["warm-start", "--cfg-path", str(stage1), "--device", "cpu", "--samples", "24", "--epochs", "30"]
    assert cli.main(command) == 0
    file = tmp_path / "warm_start" / "checkpoint_0.pth"
    assert str(file) in capsys.readouterr().out
    state = read_state(str(file))
    assert set(state) == {"llama_proj.weight", "llama_proj.bias"}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "warm_start/log.jsonl").read_text().splitlines()]
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0]

    model = build_model(load_config(str(stage1), mode="train").model)  # takes it as model.ckpt
    assert torch.equal(model.llama_proj.weight, state["llama_proj.weight"])
    with torch.no_grad():
        lengths = model.encode_img(torch.rand(2, 3, *[model.config.image_size] * 2)).norm(dim=-1)
    words = [i for colour in COLOURS for i in model.token_ids(f" {colour}")]
    length = model.embed_ids(torch.tensor(words)).norm(dim=-1).mean()
    assert 0.5 * length < lengths.mean() < 3 * length

    assert cli.main(command) == 0  # the same seed, the same projection
    assert torch.equal(read_state(str(file))["llama_proj.weight"], state["llama_proj.weight"])


@pytest.mark.parametrize("flag", ["--samples", "--epochs"])
def test_what_makes_no_sense_is_refused(stage1, flag, capsys):
    assert cli.main(["warm-start", "--cfg-path", str(stage1), flag, "0"]) == 1
    assert f"{flag}: 0" in capsys.readouterr().err

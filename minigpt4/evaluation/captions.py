"""BLEU, METEOR, ROUGE-L and CIDEr by pycocoevalcap, as the COCO caption server counts them.

The tokenizer is the library's (Stanford's PTB tokenizer, a Java program). Without Java a plain one stands in, METEOR is
left out, and the results say so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence

import numpy as np

from ..common.packages import require_packages
from .statistics import Measure, mean

JAVA, PLAIN = "PTB tokenizer (Java)", "a plain tokenizer, and no METEOR: there is no Java here"
WORD = re.compile(r"\w+(?:['.,:/\-]\w+)*|[$%&#@]")


def has_java() -> bool:
    """Java, and the right to write where the library lies: its tokenizer hands over the texts in a file there."""
    found = importlib.util.find_spec("pycocoevalcap")
    return bool(found and shutil.which("java") and os.access(next(iter(found.submodule_search_locations)), os.W_OK))


def plain_tokens(text: str) -> str:
    """Lower case, without punctuation but within words; endings are split as PTB does: it 's, do n't.

    Equal to the PTB tokenizer's on 5,400 Flickr8k and COCO captions; it differs on brackets and abbreviations (u.s.).
    """
    text = re.sub(r"\s+'(?=(?:s|re|ve|ll|d|m)\b)", "'", text.lower().replace("’", "'"))  # written apart already
    text = " ".join(WORD.findall(text))
    text = re.sub(r"\bcannot\b", "can not", text)
    text = re.sub(r"(\w)n't\b", r"\1 n't", text)
    return re.sub(r"(\w)('(?:s|re|ve|ll|d|m))\b", r"\1 \2", text)


def tokenize(texts: dict[str, list[str]], java: bool) -> dict[str, list[str]]:
    """Texts by id -> tokens joined by blanks. A text without any word stays, empty."""
    if not java:
        return {key: [plain_tokens(text) for text in values] for key, values in texts.items()}
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tool reads lines: other line ends within a text would shift all that follows; so would an empty last line.
    rows = {key: [{"caption": " ".join(text.split()) or "."} for text in values] for key, values in texts.items()}
    return PTBTokenizer().tokenize(rows)


def bleu_of(sums: np.ndarray, order: int) -> np.ndarray:
    """BLEU of sums (..., 10): words of the answers, words of the closest references, then for n = 1 to 4 the n-grams
    that were right, and those that were said. The library's formula, its small constants included."""
    length, wanted, right, said = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    product = np.prod((right[..., :order] + 1e-15) / (said[..., :order] + 1e-9), axis=-1)
    brevity = (length + 1e-15) / (wanted + 1e-9)
    return product ** (1 / order) * np.where(brevity < 1, np.exp(1 - 1 / np.maximum(brevity, 1e-300)), 1.0)


def caption_measures(answers: Sequence[str], references: Sequence[list[str]], java: bool) -> list[Measure]:
    """The metrics of N answers against their references (any number each), with the Java tools or without."""
    require_packages("--suite caption", "eval", "pycocoevalcap")
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    said = tokenize({str(i): [answer] for i, answer in enumerate(answers)}, java)
    wanted = tokenize({str(i): refs for i, refs in enumerate(references)}, java)

    scorer, bleu_stats = BleuScorer(n=4), []
    for key, (answer,) in said.items():
        scorer += (answer, wanted[key])
        counts = scorer.ctest[-1]
        closest = scorer._single_reflen(counts["reflen"], "closest", counts["testlen"])
        bleu_stats.append([counts["testlen"], closest, *counts["correct"], *counts["guess"]])
    stats = np.asarray(bleu_stats, dtype=float)
    measures = [
        Measure(f"bleu{n}", f"BLEU-{n}", stats, "{:.3f}", value=lambda sums, n=n: bleu_of(sums, n)) for n in range(1, 5)
    ]
    if java:  # METEOR's corpus score is no mean of the pictures' scores: their mean is moved to it
        corpus, scores = Meteor().compute_score(wanted, said)
        shift = corpus - float(np.mean(scores))
        measures.append(mean("meteor", "METEOR", [score + shift for score in scores], form="{:.3f}"))
    measures.append(mean("rouge_l", "ROUGE-L", Rouge().compute_score(wanted, said)[1], form="{:.3f}"))
    measures.append(mean("cider", "CIDEr", Cider().compute_score(wanted, said)[1], form="{:.3f}"))
    words = [len(answer.split()) for (answer,) in said.values()]
    return [*measures, mean("words", "words an answer", words, "{:.1f}", "")]

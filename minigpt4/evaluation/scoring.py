"""From answers to measures, for each suite. docs/evaluation.md defines them for readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import DataError
from . import objects as things
from . import vqa_scores
from .answering import Item
from .captions import JAVA, PLAIN, caption_measures, has_java
from .failures import REASONS, failure
from .judge import Judge
from .statistics import Measure, mean, share

FULFILLED = (
    "A model was shown this picture and asked: {question}\nIt answered: {answer}\n"
    "Does the answer fit the picture and do what was asked? Answer yes or no."
)
COVERS = (
    "What a person says of a picture: {caption}\nWhat a model says of it: {answer}\n"
    "Does the model's text cover the main objects and visual relations of the person's? Answer yes or no."
)


@dataclass
class Scored:
    """A suite's result for one model.

    Args:
        verdicts: for each item what the page shows: {"truth", "answer", "marks": [(start, end, kind)], "flags"}.
        notes: sentences that readers of the numbers need.
        facts: further plain values for results.json.
    """

    measures: list[Measure]
    verdicts: list[dict]
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What scoring may use: a judge and where its answers are kept, CHAIR's word list."""

    judge: Judge | None = None
    judged: Path = Path("judged.jsonl")
    synonyms: str | None = None

    def verdicts(self, questions: Sequence[tuple[str, Path | None]]) -> list[bool | None]:
        return self.judge.ask(questions, self.judged)


def _texts(answers: Sequence[dict]) -> list[str]:
    return [answer.get("answer", "") for answer in answers]


def verdict_of(truth: str, answer: str, marks: Iterable[things.Mention] = (), flags: Iterable[str] = ()) -> dict:
    spans = [(m.start, m.end, "right" if m.right else "wrong") for m in marks]
    return {"truth": truth, "answer": answer, "marks": spans, "flags": [f for f in flags if f]}


def _need_captions(items: Sequence[Item], suite: str) -> list[list[str]]:
    captions = [item.record.truth.get("captions") for item in items]
    if not all(captions):
        raise DataError(f"--suite {suite}: needs captions of every picture; add --data captions_val2017.json")
    return captions


def score_caption(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    texts, captions, java = _texts(answers), _need_captions(items, "caption"), has_java()
    measures = caption_measures(texts, captions, java)
    cider = next(m for m in measures if m.name == "cider").stats[:, 0]
    verdicts = [
        verdict_of(" · ".join(refs), text, flags=[f"CIDEr {score:.2f}"])
        for text, refs, score in zip(texts, captions, cider, strict=True)
    ]
    notes = [
        f"pycocoevalcap 1.2, {JAVA if java else PLAIN}.",
        "CIDEr weighs words by these pictures' own captions, so it compares models on the same pictures only.",
    ]
    return Scored(measures, verdicts, notes)


def score_coverage(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    everything = things.things_vocabulary()
    known = dict(everything)  # COCO's "orange" is not: in captions it is a colour
    texts, rows, verdicts, wanted = _texts(answers), [], [], []
    for item, text in zip(items, texts, strict=True):
        truth = item.record.truth
        captions = truth.get("captions", [])
        # the more weight, the more foremost: COCO's main things come largest first
        main = {name: -i for i, name in enumerate(truth.get("main", ())) if name in known}
        main = main or things.main_things(captions, everything)
        foremost = {name for name, weight in main.items() if weight == max(main.values())}
        there = {n for c in captions for n in things.seen(c, everything)} | set(truth.get("objects", ())) | set(main)
        marks = things.find_fitting(text, everything, there)
        said = {name for m in marks for name in m.names}
        of_captions = [c for c in (things.seen(caption, everything) for caption in captions) if c]
        rows.append({
            "hit": len(said & set(main)), "foremost": bool(said & foremost), "main": len(main),
            "wrong": len({m.names for m in marks if not m.right}),
            "covered": sum(c <= said for c in of_captions), "captions": len(of_captions),
        })  # fmt: skip
        wanted.append(list(main))
        verdicts.append(verdict_of("main: " + (", ".join(main) or "nothing that is counted"), text, marks))
    measures = [
        share("picture_named", "pictures with a main thing named", [(r["hit"] > 0, r["main"] > 0) for r in rows]),
        share("foremost_named", "pictures with the foremost thing named",
              [(r["foremost"], r["main"] > 0) for r in rows]),
        share("main_named", "main things named", [(r["hit"], r["main"]) for r in rows]),
        mean("wrong", "things named that are not there, an answer", [r["wrong"] for r in rows], form="{:.2f}",
             better="less"),
        share("captions_covered", "captions whose things are all named", [(r["covered"], r["captions"]) for r in rows]),
        share("covered_each", "… of them, a picture", [(r["covered"], r["captions"] > 0) for r in rows], form="{:.2f}"),
    ]  # fmt: skip
    if not any(r["captions"] for r in rows):
        measures = measures[:4]
    blind = things.swapped_share(texts, wanted, everything) if len(texts) <= 1000 else None
    notes = [
        f"{sum(r['main'] == 0 for r in rows)} of {len(rows)} pictures have no main thing by the rule and are left out."
    ]
    if blind is not None:
        notes.append(f"With the answers shuffled among the pictures, {blind:.1%} have a main thing named.")
    if tools.judge:
        measures += _judge_coverage(items, texts, tools)
    return Scored(measures, verdicts, notes, {"picture_named_shuffled": blind})


def _judge_coverage(items: Sequence[Item], texts: Sequence[str], tools: Tools) -> list[Measure]:
    asked = [
        (i, COVERS.format(caption=caption, answer=text))
        for i, (item, text) in enumerate(zip(items, texts, strict=True))
        for caption in item.record.truth.get("captions", ())
    ]
    said = tools.verdicts([(question, None) for _, question in asked])
    yes, judged = [0] * len(items), [0] * len(items)
    for (i, _), verdict in zip(asked, said, strict=True):
        yes[i] += verdict is True
        judged[i] += verdict is not None
    return [
        share("judge_covered", "captions covered, says the judge", list(zip(yes, judged, strict=True))),
        share(
            "judge_each", "… of them, a picture", [(y, j > 0) for y, j in zip(yes, judged, strict=True)], form="{:.2f}"
        ),
    ]


def score_chair(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.read_vocabulary(tools.synonyms or things.COCO_SYNONYMS)
    rows, verdicts = [], []
    for item, text in zip(items, _texts(answers), strict=True):
        truth = item.record.truth
        there = {n for c in truth.get("captions", ()) for n in things.named(c, vocabulary)} | set(
            truth.get("objects", ())
        )
        marks = things.find(text, vocabulary, there)
        wrong, said = sum(not m.right for m in marks), {name for m in marks for name in m.names}
        rows.append((item.variant, wrong, len(marks), len(said & there), len(there), len(text.split())))
        verdicts.append(verdict_of("there: " + (", ".join(sorted(there)) or "none of COCO's 80"), text, marks))
    measures = []
    for variant in dict.fromkeys(item.variant for item in items):
        mine = [(row[0] == variant, *row[1:]) for row in rows]
        measures += [
            share(
                f"{variant}.chair_i", f"{variant}: CHAIR_i", [(w * on, n * on) for on, w, n, *_ in mine], better="less"
            ),
            share(
                f"{variant}.chair_s", f"{variant}: CHAIR_s", [((w > 0) * on, on) for on, w, *_ in mine], better="less"
            ),
            share(f"{variant}.recall", f"{variant}: objects named", [(h * on, t * on) for on, _, _, h, t, _ in mine]),
            share(
                f"{variant}.words", f"{variant}: words", [(w * on, on) for on, *_, w in mine], form="{:.1f}", better=""
            ),
        ]
    notes = [f"Words: {tools.synonyms or 'coco_synonyms.txt, written after the published list from memory'}."]
    if not all("objects" in item.record.truth for item in items):
        notes.append(
            "Without COCO instances, what no caption mentions counts as not there: the rates are too high, and only "
            "models on the same pictures compare."
        )
    return Scored(measures, verdicts, notes)


def score_failure(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    reasons = [failure(a["answer"], a["hit_limit"], i.variant == "poem") for i, a in zip(items, answers, strict=True)]
    measures = [mean("failed", "answers that fail", [bool(r) for r in reasons], better="less")]
    variants = list(dict.fromkeys(item.variant for item in items))
    for variant in variants if len(variants) > 1 else ():
        rows = [(bool(r) and i.variant == variant, i.variant == variant) for i, r in zip(items, reasons, strict=True)]
        measures.append(share(f"failed.{variant}", f"… {variant}", rows, better="less"))
    measures += [mean(name, f"… {name}", [r == name for r in reasons], better="less") for name in REASONS]
    words = [len(text.split()) for text in _texts(answers)]
    measures.append(mean("words", "words an answer", words, form="{:.0f}", better=""))
    verdicts = [
        verdict_of("", a["answer"], flags=[reason, "token limit" if a["hit_limit"] else ""])
        for a, reason in zip(answers, reasons, strict=True)
    ]
    return Scored(measures, verdicts, ["docs/evaluation.md says what counts as a failure."])


def score_abilities(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    scored = score_failure(items, answers, tools)
    if not tools.judge:
        scored.notes.append("Whether an answer does what was asked is for people to say, or for a --judge.")
        return scored
    questions = [
        (FULFILLED.format(question=item.question, answer=a["answer"]), item.record.image)
        for item, a in zip(items, answers, strict=True)
    ]
    said = tools.verdicts(questions)
    for variant in dict.fromkeys(item.variant for item in items):
        rows = [
            (v is True and item.variant == variant, v is not None and item.variant == variant)
            for item, v in zip(items, said, strict=True)
        ]
        scored.measures.append(share(f"judge.{variant}", f"{variant}: does what was asked, says the judge", rows))
    for verdict, v in zip(scored.verdicts, said, strict=True):
        verdict["flags"].append({True: "judge: yes", False: "judge: no", None: "judge: ?"}[v])
    return scored


def score_vqa(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    rows, verdicts = [], []  # a row: the measure's name -> its score of this answer
    for item, answer in zip(items, answers, strict=True):
        truth = item.record.truth
        if item.choices:
            best, by_token = (order[0] == truth["correct"] for order in ranked(answer))
            row = {"choice": best, "choice_by_token": by_token}
            right, text, wanted = best, item.choices[ranked(answer)[0][0]], item.choices[truth["correct"]]
        else:
            text, rule, people = answer["answer"], truth["rule"], truth["answers"]
            row = {"open": vqa_scores.RULES[rule](text, people), "open_held": vqa_scores.holds(text, people, rule)}
            right, wanted = row["open"] > 0, ", ".join(dict.fromkeys(people))
        rows.append(row)
        verdicts.append(verdict_of(f"{truth['question']} {wanted}", text, flags=["right" if right else "wrong"]))
    types = [item.record.truth.get("type", "") for item in items]
    measures = []
    for name, label in {"open": "open answers, official accuracy", "choice": "choices, by likelihood"}.items():
        other, other_label = {
            "open": ("open_held", "… if a part of the answer may count"),
            "choice": ("choice_by_token", "… by likelihood a token"),
        }[name]
        if not any(name in row for row in rows):
            continue
        measures.append(share(name, label, [(row.get(name, 0), name in row) for row in rows]))
        kinds = sorted({t for t, row in zip(types, rows, strict=True) if name in row} - {""})
        for kind in kinds if len(kinds) > 1 else ():
            counts = [(row.get(name, 0) * (t == kind), name in row and t == kind)
                      for t, row in zip(types, rows, strict=True)]  # fmt: skip
            measures.append(share(f"{name}.{kind}", f"… {kind}", counts))
        measures.append(share(other, other_label, [(row.get(other, 0), other in row) for row in rows]))
    notes = ["Answers are brought into the VQA challenge's form before they are compared."]
    return Scored(measures, verdicts, [*notes, *_always_the_same(items)])


def _always_the_same(items: Sequence[Item]) -> list[str]:
    """What one answer to everything would get: accuracy says little where that is much."""
    truths = [item.record.truth for item in items if not item.choices]
    if not truths:
        return []
    counts = Counter(vqa_scores.normalize(Counter(truth["answers"]).most_common(1)[0][0]) for truth in truths)
    (answer, _), *_ = counts.most_common(1)
    got = sum(vqa_scores.RULES[truth["rule"]](answer, truth["answers"]) for truth in truths) / len(truths)
    return [f"Always saying “{answer}” gets {got:.1%} of the open answers."]


def ranked(answer: dict) -> tuple[list[int], list[int]]:
    """The choices from the likeliest on: by the likelihood of the whole, and by its mean over tokens."""
    order = range(len(answer["scores"]))
    by_token = [score / tokens for score, tokens in zip(answer["scores"], answer["tokens"], strict=True)]
    return sorted(order, key=lambda i: -answer["scores"][i]), sorted(order, key=lambda i: -by_token[i])


def score_labels(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.labels_vocabulary(things.label_of(i.record.truth["captions"][0]) for i in items)
    named, top1, top5, verdicts = [], [], [], []
    for item, answer in zip(items, answers, strict=True):
        caption = item.record.truth["captions"][0]
        label = things.label_of(caption)
        if item.choices:
            order = [item.choices[i] for i in ranked(answer)[0]]
            right = caption == order[0]
            named.append((0, 0)), top1.append((right, 1)), top5.append((caption in order[:5], 1))
            verdicts.append(verdict_of(label, "; ".join(order[:5]), flags=["right" if right else "wrong"]))
        else:
            marks = things.find(answer["answer"], vocabulary, [label])
            right = any(m.right for m in marks)
            named.append((right, 1)), top1.append((0, 0)), top5.append((0, 0))
            verdicts.append(verdict_of(label, answer["answer"], marks, ["right" if right else "wrong"]))
    measures = [
        share("named", "label named in the answer", named),
        share("top1", "label ranked first by likelihood", top1),
        share("top5", "label among the first five", top5),
    ]
    count = len(items[0].record.truth["choices"])
    return Scored(measures, verdicts, [f"Ranked: the {count} captions of this data."])

"""From answers to measures, for each suite. docs/evaluation.md defines them for readers."""

from __future__ import annotations

import tomllib
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
from .statistics import Measure, share

MEASURES = tomllib.loads(Path(__file__).with_name("measures.toml").read_text(encoding="utf-8"))


@dataclass
class Scored:
    """A suite's result for one model."""

    measures: list[Measure]
    verdicts: list[dict]  # for each item what the page shows, see `verdict_of`
    notes: list[str] = field(default_factory=list)  # sentences that readers of the numbers need
    facts: dict = field(default_factory=dict)  # further plain values for results.json


@dataclass(frozen=True)
class Tools:
    """What scoring may use: a judge and the file that keeps its answers, CHAIR's word list."""

    judge: Judge | None = None
    judged: Path = Path("judged.jsonl")
    synonyms: str | None = None


def verdict_of(truth: str, answer: str, marks: Iterable[things.Mention] = (), flags: Iterable[str] = ()) -> dict:
    """What the page shows of an answer: {"truth", "answer", "marks": [(start, end, right or wrong)], "flags"}."""
    spans = [(m.start, m.end, "right" if m.right else "wrong") for m in marks]
    return {"truth": truth, "answer": answer, "marks": spans, "flags": [f for f in flags if f]}


def measures_of(rows: Sequence[dict[str, tuple]], labels: dict[str, Sequence[str]]) -> list[Measure]:
    """The measures that some answer has. A row has (numerator, denominator) of an answer by the measure's name; where
    it has none, the answer does not count. `labels`: as in measures.toml."""
    return [
        share(name, label, [row.get(name, (0, 0)) for row in rows], *style)
        for name, (label, *style) in labels.items()
        if any(name in row for row in rows)
    ]


def score_caption(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    texts, java = [a["answer"] for a in answers], has_java()
    captions = [item.record.truth.get("captions") for item in items]
    if not all(captions):
        raise DataError("--suite caption: needs captions of every picture; add --data captions_val2017.json")
    measures = caption_measures(texts, captions, java)
    cider = next(m for m in measures if m.name == "cider").stats[:, 0]
    verdicts = [
        verdict_of(" · ".join(refs), text, flags=[f"CIDEr {score:.2f}"])
        for text, refs, score in zip(texts, captions, cider, strict=True)
    ]
    warning = "CIDEr weighs words by these pictures' own captions, so it compares models on the same pictures only."
    return Scored(measures, verdicts, [f"pycocoevalcap 1.2, {JAVA if java else PLAIN}.", warning])


def score_coverage(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.things_vocabulary()
    known = dict(vocabulary)  # COCO's "orange" is not: in captions it is a colour
    texts, rows, verdicts, wanted = [a["answer"] for a in answers], [], [], []
    if tools.judge:
        pairs = [(c, text) for i, text in zip(items, texts, strict=True) for c in i.record.truth.get("captions", ())]
        asked = [(MEASURES["judge"]["coverage"].format(caption=c, answer=t), None) for c, t in pairs]
        replies = iter(tools.judge.ask(asked, tools.judged))
    for item, text in zip(items, texts, strict=True):
        captions, objects = item.record.truth.get("captions", []), item.record.truth.get("objects", ())
        # the more weight, the more foremost: COCO's main things come largest first
        main = {name: -i for i, name in enumerate(item.record.truth.get("main", ())) if name in known}
        main = main or things.main_things(captions, vocabulary)
        foremost = {name for name, weight in main.items() if weight == max(main.values())}
        of_captions = [seen for seen in (things.seen(caption, vocabulary) for caption in captions) if seen]
        marks = things.find(text, vocabulary, {*main, *objects}.union(*of_captions))
        said = {name for m in marks for name in m.names}
        row = {
            "picture_named": (bool(said & set(main)), bool(main)),
            "foremost_named": (bool(said & foremost), bool(main)),
            "main_named": (len(said & set(main)), len(main)),
            "wrong": (len({m.names for m in marks if not m.right}), 1),
        }
        if of_captions:
            covered = sum(seen <= said for seen in of_captions)
            row |= {"captions_covered": (covered, len(of_captions)), "covered_each": (covered, 1)}
        if tools.judge and captions:
            judged = [next(replies) for _ in captions]
            counted = len(judged) - judged.count(None)
            row |= {"judge_covered": (judged.count(True), counted), "judge_each": (judged.count(True), counted > 0)}
        rows.append(row)
        wanted.append(list(main))
        verdicts.append(verdict_of("main: " + (", ".join(main) or "nothing that is counted"), text, marks))
    notes = [f"{wanted.count([])} of {len(rows)} pictures have no main thing by the rule and are left out."]
    blind = things.swapped_share(texts, wanted, vocabulary) if len(texts) <= 1000 else None
    if blind is not None:
        notes.append(f"With the answers shuffled among the pictures, {blind:.1%} have a main thing named.")
    return Scored(measures_of(rows, MEASURES["coverage"]), verdicts, notes, {"picture_named_shuffled": blind})


def score_chair(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.read_vocabulary(tools.synonyms or things.COCO_SYNONYMS)
    rows, verdicts = [], []
    for item, answer in zip(items, answers, strict=True):
        truth, text = item.record.truth, answer["answer"]
        there = set(truth.get("objects", ())).union(*(things.named(c, vocabulary) for c in truth.get("captions", ())))
        marks = things.find(text, vocabulary, there)
        wrong, said = sum(not m.right for m in marks), {name for m in marks for name in m.names}
        row = {"chair_i": (wrong, len(marks)), "chair_s": (wrong > 0, 1), "recall": (len(said & there), len(there)),
               "words": (len(text.split()), 1)}  # fmt: skip
        rows.append({f"{item.variant}.{name}": count for name, count in row.items()})
        verdicts.append(verdict_of("there: " + (", ".join(sorted(there)) or "none of COCO's 80"), text, marks))
    labels = {
        f"{variant}.{name}": (f"{variant}: {label}", *style)
        for variant in ("short", "long")
        for name, (label, *style) in MEASURES["chair"].items()
    }
    notes = [f"Words: {tools.synonyms or 'coco_synonyms.txt, written after the published list from memory'}."]
    if not all("objects" in item.record.truth for item in items):
        notes.append(
            "Without COCO instances, what no caption mentions counts as not there: the rates are too high, and only "
            "models on the same pictures compare."
        )
    return Scored(measures_of(rows, labels), verdicts, notes)


def score_failure(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    rows, verdicts, style = [], [], ("{:.1%}", "less")
    variants = list(dict.fromkeys(item.variant for item in items))
    for item, answer in zip(items, answers, strict=True):
        reason = failure(answer["answer"], answer["hit_limit"], item.variant == "poem")
        failed = (reason != "", 1)
        row = {"failed": failed, "words": (len(answer["answer"].split()), 1)}
        rows.append({**row, f"failed.{item.variant}": failed, **{name: (reason == name, 1) for name in REASONS}})
        flags = [reason, "token limit" if answer["hit_limit"] else ""]
        verdicts.append(verdict_of("", answer["answer"], flags=flags))
    labels = {"failed": ("answers that fail", *style)}
    labels |= {f"failed.{variant}": (f"… {variant}", *style) for variant in variants if len(variants) > 1}
    labels |= {name: (f"… {name}", *style) for name in REASONS} | {"words": ("words an answer", "{:.0f}", "")}
    return Scored(measures_of(rows, labels), verdicts, ["docs/evaluation.md says what counts as a failure."])


def score_abilities(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    scored = score_failure(items, answers, tools)
    if not tools.judge:
        scored.notes.append("Whether an answer does what was asked is for people to say, or for a --judge.")
        return scored
    questions = [
        (MEASURES["judge"]["abilities"].format(question=item.question, answer=a["answer"]), item.record.image)
        for item, a in zip(items, answers, strict=True)
    ]
    said = tools.judge.ask(questions, tools.judged)
    rows = [{f"judge.{item.variant}": (v is True, v is not None)} for item, v in zip(items, said, strict=True)]
    labels = {name: (f"{name[6:]}: does what was asked, says the judge",) for row in rows for name in row}
    scored.measures += measures_of(rows, labels)
    for verdict, v in zip(scored.verdicts, said, strict=True):
        verdict["flags"].append({True: "judge: yes", False: "judge: no", None: "judge: ?"}[v])
    return scored


def score_vqa(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    rows, verdicts = [], []
    for item, answer in zip(items, answers, strict=True):
        truth = item.record.truth
        if item.choices:
            best = answer["scores"].index(max(answer["scores"]))
            row = {"choice": (best == truth["correct"], 1)}
            right, text, wanted = best == truth["correct"], item.choices[best], item.choices[truth["correct"]]
        else:
            text, rule, people = answer["answer"], truth["rule"], truth["answers"]
            score = vqa_scores.RULES[rule](text, people)
            row = {"open": (score, 1), "open_held": (vqa_scores.holds(text, people, rule), 1)}
            right, wanted = score > 0, ", ".join(dict.fromkeys(people))
        if kind := truth.get("type"):
            row |= {f"{name}.{kind}": row[name] for name in ("open", "choice") if name in row}
        rows.append(row)
        verdicts.append(verdict_of(f"{truth['question']} {wanted}", text, flags=["right" if right else "wrong"]))
    kinds, labels = sorted({item.record.truth.get("type", "") for item in items} - {""}), {}
    for name, label in MEASURES["vqa"].items():
        labels |= {name: label} | {f"{name}.{kind}": (f"… {kind}",) for kind in kinds if len(kinds) > 1}
    notes = ["Answers are brought into the VQA challenge's form before they are compared."]
    truths = [item.record.truth for item in items if not item.choices]
    if truths:  # what one answer to everything would get: accuracy says little where that is much
        most = [vqa_scores.normalize(Counter(truth["answers"]).most_common(1)[0][0]) for truth in truths]
        answer = Counter(most).most_common(1)[0][0]
        got = sum(vqa_scores.RULES[truth["rule"]](answer, truth["answers"]) for truth in truths) / len(truths)
        notes.append(f"Always saying “{answer}” gets {got:.1%} of the open answers.")
    return Scored(measures_of(rows, labels), verdicts, notes)


def score_labels(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.labels_vocabulary(things.label_of(i.record.truth["captions"][0]) for i in items)
    rows, verdicts = [], []
    for item, answer in zip(items, answers, strict=True):
        caption = item.record.truth["captions"][0]
        label = things.label_of(caption)
        if item.choices:
            ranked = sorted(zip(answer["scores"], item.choices, strict=True), key=lambda pair: -pair[0])
            best = [choice for _, choice in ranked[:5]]
            row = {"top1": (caption == best[0], 1), "top5": (caption in best, 1)}
            right, text, marks = caption == best[0], "; ".join(best), ()
        else:
            text, marks = answer["answer"], things.find(answer["answer"], vocabulary, [label])
            right = any(m.right for m in marks)
            row = {"named": (right, 1)}
        rows.append(row)
        verdicts.append(verdict_of(label, text, marks, ["right" if right else "wrong"]))
    notes = [f"Ranked: the {len(items[0].record.truth['choices'])} captions of this data."]
    return Scored(measures_of(rows, MEASURES["labels"]), verdicts, notes)

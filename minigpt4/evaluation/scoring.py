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
        verdicts: for each item what the page shows, see `verdict_of`.
        notes: sentences that readers of the numbers need.
        facts: further plain values for results.json.
    """

    measures: list[Measure]
    verdicts: list[dict]
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)


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


def variants_of(items: Sequence[Item]) -> dict[str, list[bool]]:
    """variant -> which items have it."""
    return {v: [item.variant == v for item in items] for v in dict.fromkeys(item.variant for item in items)}


def only(chosen: Sequence[bool], counts: Iterable[tuple]) -> list[tuple]:
    """(numerator, denominator) of the chosen answers; the others count nothing."""
    return [count if on else (0, 0) for on, count in zip(chosen, counts, strict=True)]


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
    notes = [
        f"pycocoevalcap 1.2, {JAVA if java else PLAIN}.",
        "CIDEr weighs words by these pictures' own captions, so it compares models on the same pictures only.",
    ]
    return Scored(measures, verdicts, notes)


def score_coverage(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.things_vocabulary()
    known = dict(vocabulary)  # COCO's "orange" is not: in captions it is a colour
    texts, rows, verdicts, wanted = [a["answer"] for a in answers], [], [], []
    for item, text in zip(items, texts, strict=True):
        captions, objects = item.record.truth.get("captions", []), item.record.truth.get("objects", ())
        # the more weight, the more foremost: COCO's main things come largest first
        main = {name: -i for i, name in enumerate(item.record.truth.get("main", ())) if name in known}
        main = main or things.main_things(captions, vocabulary)
        foremost = {name for name, weight in main.items() if weight == max(main.values())}
        of_captions = [seen for seen in (things.seen(caption, vocabulary) for caption in captions) if seen]
        marks = things.find_fitting(text, vocabulary, {*main, *objects}.union(*of_captions))
        said = {name for m in marks for name in m.names}
        rows.append({
            "hit": len(said & set(main)), "foremost": bool(said & foremost), "main": len(main),
            "wrong": len({m.names for m in marks if not m.right}),
            "covered": sum(seen <= said for seen in of_captions), "captions": len(of_captions),
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
    ]  # fmt: skip
    if any(r["captions"] for r in rows):
        covered = [(r["covered"], r["captions"]) for r in rows]
        measures += _covered("captions_covered", "covered_each", "captions whose things are all named", covered)
    without = sum(not row["main"] for row in rows)
    notes = [f"{without} of {len(rows)} pictures have no main thing by the rule and are left out."]
    blind = things.swapped_share(texts, wanted, vocabulary) if len(texts) <= 1000 else None
    if blind is not None:
        notes.append(f"With the answers shuffled among the pictures, {blind:.1%} have a main thing named.")
    if tools.judge:
        captions = [item.record.truth.get("captions", ()) for item in items]
        asked = [COVERS.format(caption=c, answer=text) for text, cs in zip(texts, captions, strict=True) for c in cs]
        said = iter(tools.judge.ask([(question, None) for question in asked], tools.judged))
        judged = [[next(said) for _ in of_picture] for of_picture in captions]
        counts = [(of_picture.count(True), len(of_picture) - of_picture.count(None)) for of_picture in judged]
        measures += _covered("judge_covered", "judge_each", "captions covered, says the judge", counts)
    return Scored(measures, verdicts, notes, {"picture_named_shuffled": blind})


def _covered(name: str, each: str, label: str, counts: Sequence[tuple[int, int]]) -> list[Measure]:
    """The share of all captions that is covered, and how many are, a picture."""
    of_pictures = [(covered, total > 0) for covered, total in counts]
    return [share(name, label, counts), share(each, "… of them, a picture", of_pictures, form="{:.2f}")]


def score_chair(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.read_vocabulary(tools.synonyms or things.COCO_SYNONYMS)
    counts: dict[str, list[tuple]] = {"chair_i": [], "chair_s": [], "recall": [], "words": []}
    verdicts = []
    for item, answer in zip(items, answers, strict=True):
        truth, text = item.record.truth, answer["answer"]
        there = set(truth.get("objects", ())).union(*(things.named(c, vocabulary) for c in truth.get("captions", ())))
        marks = things.find(text, vocabulary, there)
        wrong, said = sum(not m.right for m in marks), {name for m in marks for name in m.names}
        counts["chair_i"].append((wrong, len(marks)))
        counts["chair_s"].append((wrong > 0, 1))
        counts["recall"].append((len(said & there), len(there)))
        counts["words"].append((len(text.split()), 1))
        verdicts.append(verdict_of("there: " + (", ".join(sorted(there)) or "none of COCO's 80"), text, marks))
    measures = [
        share(f"{variant}.{name}", f"{variant}: {label}", only(chosen, counts[name]), **more)
        for variant, chosen in variants_of(items).items()
        for name, label, more in (
            ("chair_i", "CHAIR_i", {"better": "less"}),
            ("chair_s", "CHAIR_s", {"better": "less"}),
            ("recall", "objects named", {}),
            ("words", "words", {"form": "{:.1f}", "better": ""}),
        )
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
    variants = variants_of(items)
    for variant, chosen in variants.items() if len(variants) > 1 else ():
        rows = only(chosen, [(bool(r), 1) for r in reasons])
        measures.append(share(f"failed.{variant}", f"… {variant}", rows, better="less"))
    measures += [mean(name, f"… {name}", [r == name for r in reasons], better="less") for name in REASONS]
    words = [len(a["answer"].split()) for a in answers]
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
    said = tools.judge.ask(questions, tools.judged)
    for variant, chosen in variants_of(items).items():
        rows = only(chosen, [(v is True, v is not None) for v in said])
        scored.measures.append(share(f"judge.{variant}", f"{variant}: does what was asked, says the judge", rows))
    for verdict, v in zip(scored.verdicts, said, strict=True):
        verdict["flags"].append({True: "judge: yes", False: "judge: no", None: "judge: ?"}[v])
    return scored


def score_vqa(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    rows, verdicts = [], []  # a row: the measure's name -> its score of this answer
    for item, answer in zip(items, answers, strict=True):
        truth = item.record.truth
        if item.choices:
            best, by_token = ranked(answer)[0], ranked(answer, by_token=True)[0]
            row = {"choice": best == truth["correct"], "choice_by_token": by_token == truth["correct"]}
            right, text, wanted = row["choice"], item.choices[best], item.choices[truth["correct"]]
        else:
            text, rule, people = answer["answer"], truth["rule"], truth["answers"]
            row = {"open": vqa_scores.RULES[rule](text, people), "open_held": vqa_scores.holds(text, people, rule)}
            right, wanted = row["open"] > 0, ", ".join(dict.fromkeys(people))
        rows.append(row)
        verdicts.append(verdict_of(f"{truth['question']} {wanted}", text, flags=["right" if right else "wrong"]))
    types = [item.record.truth.get("type", "") for item in items]
    measures = []
    for name, label in {
        "open": "open answers, official accuracy", "open_held": "… if a part of the answer may count",
        "choice": "choices, by likelihood", "choice_by_token": "… by likelihood a token",
    }.items():  # fmt: skip
        counts = [(row.get(name, 0), name in row) for row in rows]
        if not any(there for _, there in counts):
            continue
        measures.append(share(name, label, counts))
        kinds = sorted({t for t, row in zip(types, rows, strict=True) if name in row} - {""})
        for kind in kinds if len(kinds) > 1 and name in ("open", "choice") else ():
            measures.append(share(f"{name}.{kind}", f"… {kind}", only([t == kind for t in types], counts)))
    notes = ["Answers are brought into the VQA challenge's form before they are compared."]
    truths = [item.record.truth for item in items if not item.choices]
    if truths:  # what one answer to everything would get: accuracy says little where that is much
        most = [vqa_scores.normalize(Counter(truth["answers"]).most_common(1)[0][0]) for truth in truths]
        answer = Counter(most).most_common(1)[0][0]
        got = sum(vqa_scores.RULES[truth["rule"]](answer, truth["answers"]) for truth in truths) / len(truths)
        notes.append(f"Always saying “{answer}” gets {got:.1%} of the open answers.")
    return Scored(measures, verdicts, notes)


def ranked(answer: dict, by_token: bool = False) -> list[int]:
    """The choices from the likeliest on: by the likelihood of the whole, or by its mean over tokens."""
    scores = [s / (n if by_token else 1) for s, n in zip(answer["scores"], answer["tokens"], strict=True)]
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def score_labels(items: Sequence[Item], answers: Sequence[dict], tools: Tools) -> Scored:
    vocabulary = things.labels_vocabulary(things.label_of(i.record.truth["captions"][0]) for i in items)
    counts: dict[str, list[tuple]] = {"named": [], "top1": [], "top5": []}
    verdicts = []
    for item, answer in zip(items, answers, strict=True):
        caption = item.record.truth["captions"][0]
        label = things.label_of(caption)
        if item.choices:
            best = [item.choices[i] for i in ranked(answer)[:5]]
            row = {"top1": (caption == best[0], 1), "top5": (caption in best, 1)}
            right, text, marks = caption == best[0], "; ".join(best), ()
        else:
            text, marks = answer["answer"], things.find(answer["answer"], vocabulary, [label])
            right = any(m.right for m in marks)
            row = {"named": (right, 1)}
        for name, column in counts.items():
            column.append(row.get(name, (0, 0)))
        verdicts.append(verdict_of(label, text, marks, ["right" if right else "wrong"]))
    measures = [
        share("named", "label named in the answer", counts["named"]),
        share("top1", "label ranked first by likelihood", counts["top1"]),
        share("top5", "label among the first five", counts["top5"]),
    ]
    return Scored(measures, verdicts, [f"Ranked: the {len(items[0].record.truth['choices'])} captions of this data."])

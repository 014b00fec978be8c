"""`minigpt4 doctor --cfg-path X`: is everything that this config needs there, whole, and what it should be?

One page: the machine, every file (identified by what is in it), the form of prompts and answers. Headers are read, not
weights, so that a full-size model takes seconds.

CHECKS below is the table: which check is made in which order. A check is a function in `files.py`, `llm.py` or
`machine.py`; what several of them need to know is in `context.py`.
"""

import argparse
import json
import textwrap
from dataclasses import asdict, replace

from ... import tasks  # noqa: F401  (fills the registries, so that names are checked)
from ...common.config import read_config
from . import files, llm, machine
from .context import FAULTS, LOOK, OK, WRONG, Context, Finding, Unknown, of_error


def check_config(context: Context) -> list[Finding]:
    """The config has no unknown key, wrong value, placeholder or missing file."""
    return [Finding(WRONG, text, name=key) for key, text in context.problems.items()]


# (section of the page, the key or word that the finding stands beside, check), in the order of the page. A check takes
# the Context and returns a Finding, several, or None where it does not apply.
CHECKS = (
    ("Config", "", check_config),
    ("Files", "model.vit_ckpt", files.check_vit),
    ("Files", "model.q_former_model", files.check_qformer),
    ("Files", "model.llama_model", llm.check_llm),
    ("Files", "model.ckpt", files.check_ckpt),
    ("Language", "tokenizer", llm.check_tokenizer),
    ("Language", "model.conv_template", llm.check_template),
    ("Language", "model", llm.check_model),
    ("Machine", "versions", machine.check_versions),
    ("Machine", "device", machine.check_device),
    ("Machine", "precision", machine.check_precision),
    ("Machine", "memory", machine.check_memory),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg-path", required=True, help="the YAML config")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    add("--mode", choices=("train", "chat"), help="what it is for (default: train if it has run.max_epoch)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    add("--json", action="store_true", help="one JSON object instead of the page")


def run(args: argparse.Namespace) -> int:
    """Print the page; exit code 1 when something is wrong."""
    seen = examine(args.cfg_path, args.options, args.mode, args.device)
    config, findings = seen.config, seen.findings
    counts = {mark: sum(finding.mark == mark for finding in findings) for mark in (OK, LOOK, WRONG)}
    if args.json:
        rows = [asdict(finding) for finding in findings]
        told = {"config": config.path, "mode": seen.mode, "counts": counts, "rows": rows}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print(f"minigpt4 doctor: {config.path}, for {seen.mode}\n{page(findings)}\n")
        verdict = f"{counts[WRONG]} wrong" if counts[WRONG] else "Nothing wrong"
        print(verdict + (f", {counts[LOOK]} to look at." if counts[LOOK] else "."))
        if seen.mode == "chat" and not counts[WRONG]:
            print(f"To see what it says: minigpt4 describe PICTURE --cfg-path {config.path}")
    return 1 if counts[WRONG] else 0


def examine(cfg_path: str, options: list[str], mode: str | None = None, device: str | None = None) -> Context:
    """Make every check. Of a key with a problem in the config, only that problem is told; and a fault of a file that
    several checks read is told once.

    Raises:
        ConfigError: the config file itself cannot be read.
    """
    if mode is None:
        mode = "train" if "run.max_epoch" in read_config(cfg_path, options, mode="show")[0].origin else "chat"
    config, problems = read_config(cfg_path, options, mode=mode)
    context = Context(config, mode, dict(line.split(": ", 1) for line in problems), device)
    told = set()  # names and texts of what is wrong
    for section, name, check in CHECKS:
        try:
            found = () if name in context.problems else check(context) or ()
        except Unknown:
            continue
        except FAULTS as error:
            found = of_error(error, name if name == "tokenizer" else "")
            found = () if {found.name, found.text} & told else found
        for finding in [found] if isinstance(found, Finding) else found:
            finding = replace(finding, section=section, name=finding.name or name)
            if check is check_config or finding.name not in context.problems:
                context.findings.append(finding)
                told |= {finding.name, finding.text} if finding.mark == WRONG else set()
    return context


def page(findings: list[Finding]) -> str:
    """The findings under their sections: mark and name, then the text and what to do, wrapped."""
    lines, section = [], None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {finding.mark if finding.mark == OK else finding.mark.upper():6} {finding.name}")
        wrap = textwrap.TextWrapper(91, break_long_words=False, break_on_hyphens=False).wrap
        told = [*finding.text.split("\n"), *([f"-> {finding.do}"] if finding.do else [])]
        lines += [" " * 9 + line for text in told for line in wrap(text)]
    return "\n".join(lines)

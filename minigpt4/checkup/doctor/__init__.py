"""`minigpt4 doctor --cfg-path X`: is everything that this config needs there, whole, and what it should be?

One page: the machine, every file (identified by what is in it), the form of prompts and answers, and a question
answered. Headers are read, not weights, so that a full-size model takes seconds; only the smoke generation loads it.

CHECKS below is the table: which check is made in which order. A check is a function in `machine.py`, `files.py` or
`llm.py`; what several of them need to know is in `context.py`. `smoke.py` asks the question, `page.py` prints.
"""

import argparse
import json
import shutil
from dataclasses import asdict, replace

from ... import runners, serve, tasks  # noqa: F401  (fill the registries, so that names are checked)
from ...common.config import read_config
from . import files, llm, machine, smoke
from .context import FAULTS, Context
from .page import LOOK, WRONG, Finding, counts, of_error, page

SECONDS = 20


def check_config(context: Context) -> list[Finding]:
    """The config has no unknown key, wrong value, placeholder or missing file."""
    return [Finding(WRONG, text, name=key) for key, text in context.problems.items()]


# (section of the page, the key or word that the finding stands beside, check), in the order of the page. A check takes
# the Context and returns a Finding, several, or None where it does not apply.
CHECKS = (
    ("Machine", "versions", machine.check_versions),
    ("Machine", "device", machine.check_device),
    ("Machine", "precision", machine.check_precision),
    ("Machine", "memory", machine.check_memory),
    ("Machine", "disk", machine.check_disk),
    ("Config", "", check_config),
    ("Files", "model.vit_ckpt", files.check_vit),
    ("Files", "model.q_former_model", files.check_qformer),
    ("Files", "model.llama_model", llm.check_llm),
    ("Files", "model.ckpt", files.check_ckpt),
    ("Files", "datasets", files.check_data),
    ("Language", "tokenizer", llm.check_tokenizer),
    ("Language", "model.conv_template", llm.check_template),
    ("Language", "model", llm.check_training_form),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument(
        "--mode", choices=("train", "chat"), help="what it is for (default: train if it has run.max_epoch)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    parser.add_argument("--no-generate", action="store_true", help="leave out the smoke generation")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="limit of the smoke generation (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the page")


def run(args: argparse.Namespace) -> int:
    """Print the page; exit code 1 when something is wrong."""
    seen = examine(args.cfg_path, args.options, args.mode, args.device)
    config, findings = seen.config, seen.findings
    names = min(max(len(finding.name) for finding in findings), 26)  # a few long ones need not make it wide
    width = max(min(shutil.get_terminal_size((100, 24)).columns, 100), 72)
    if not args.json:
        print(f"minigpt4 doctor: {config.path}, for {seen.mode}\n\n{page(findings, names, width)}", flush=True)
    if not args.no_generate and not seen.no_smoke:
        answer = smoke.check_answer(config.path, args.options, str(seen.device), args.seconds, bool(config.model.ckpt))
        findings.append(replace(answer, section="Smoke generation", name="answer"))
        if not args.json:
            print("\n" + page(findings[-1:], names, width))
    found = counts(findings)
    if args.json:
        rows = [asdict(finding) for finding in findings]
        told = {"config": config.path, "mode": seen.mode, "counts": found, "rows": rows}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        verdict = f"{found[WRONG]} wrong" if found[WRONG] else "Nothing wrong"
        verdict += f", {found[LOOK]} to look at." if found[LOOK] else "."
        skipped = f" No smoke generation: {seen.no_smoke}." if seen.no_smoke and not args.no_generate else ""
        print(f"\n{verdict}{skipped}")
    return 1 if found[WRONG] else 0


def examine(cfg_path: str, options: list[str], mode: str | None = None, device: str | None = None) -> Context:
    """Make every check; only the smoke generation is not tried.

    Of a key with a problem in the config, only that problem is told; and a fault of a file that several checks read is
    told once.

    Raises:
        ConfigError: the config file itself cannot be read.
    """
    if mode is None:
        mode = "train" if "run.max_epoch" in read_config(cfg_path, options, mode="show")[0].origin else "chat"
    config, problems = read_config(cfg_path, options, mode=mode)
    context = Context(config, mode, dict(line.split(": ", 1) for line in problems), device)
    told = set()
    for section, name, check in CHECKS:
        try:
            found = () if name in context.problems else check(context) or ()
        except FAULTS as error:
            found = of_error(error)
        for finding in [found] if isinstance(found, Finding) else found:
            finding = replace(finding, section=section, name=finding.name or name)
            known = finding.mark == WRONG and finding.text in told
            if not known and (check is check_config or finding.name not in context.problems):
                context.findings.append(finding)
                told.add(finding.text)
    return context

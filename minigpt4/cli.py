"""`minigpt4 VERB ...`: each verb is a module with `add_arguments(parser)` and `run(args) -> exit code`.

Modules of recipes/ are there in a clone of the project only.
"""

import argparse
import importlib
import sys
import types

from .common.errors import UserError, main_guard
from .common.paths import PROJECT

VERBS = {
    "config": (".checkup.show_config", "print a resolved config and where each value came from"),
    "data": (".checkup.data", "check training data before a run does"),
    "features": (".tasks.extract_features", "compute the frozen ViT's features of a config's pictures, once for all "
                 "epochs"),
    "warm-start": (
        ".tasks.warm_start",
        "fit the projection to the captions' words before stage 1, without the LLM's layers (not in the paper)",
    ),
    "describe": (".serve.describe", "say what is in pictures, without a browser"),
    "eval": (".evaluation.run", "score a model on pictures: captions, things named, broken answers, questions"),
    "curate": (".curation.run", "make stage-2 data: a model describes photos, bad sentences are dropped"),
    "doctor": (".checkup.doctor", "say what is wrong with a config's files and this machine, and what to do"),
    "export": (".weights.export", "write the weights of a checkpoint alone, as safetensors"),
    "export-hf": (".convert.hf.export_hf", "write the model as transformers' BLIP-2, which opens without this code"),
    "import-hf": (".convert.hf.import_hf", "write the files that an exported folder was made of again"),
    "weights": (".weights.small", "fetch and convert the small frozen weights"),
    "prepare-vicuna": (".convert.vicuna.prepare", "make Vicuna from LLaMA and its delta, and verify it"),
    "sample-set": ("recipes.quickstart.sample_set", "make the sample set that the quickstart trains on"),
    "plan": (".checkup.plan.page", "say whether a config fits a GPU, and how long it takes"),
    "tiny": ("recipes.tiny.train", "train the small model that ships, from captioned photos to its figures"),
    "ablations": ("recipes.tiny.ablations", "train the small model in the paper's other ways: a table and a plot with "
                  "error bars"),
    "quickstart": ("recipes.quickstart.run", "train both stages on the sample set and write a report"),
}  # fmt: skip


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that is called is imported, so `--help` answers at once."""
    parser = argparse.ArgumentParser(prog="minigpt4", description="MiniGPT-4: train it, prepare for it, talk to it.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, summary) in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [verb]:
            loaded = load_verb(verb, module)
            loaded.add_arguments(sub)
            sub.set_defaults(run=loaded.run)
    return parser


def load_verb(verb: str, module: str) -> types.ModuleType:
    """The module of a verb. Raises UserError: it is a recipe, and recipes/ is not here."""
    if module.startswith("recipes."):
        if not (PROJECT / "recipes").is_dir():
            raise UserError(
                f"minigpt4 {verb}: it is in recipes/, which is not part of the installed package; clone the project, "
                "install it from there with `pip install -e .`, and call this again"
            )
        if str(PROJECT) not in sys.path:
            sys.path.append(str(PROJECT))
    return importlib.import_module(module, __package__)


def main(argv: list[str] | None = None) -> int:
    """Exit code: the verb's, or 1 after a user error's message."""
    argv = sys.argv[1:] if argv is None else argv

    def call() -> int:
        args = build_parser(argv).parse_args(argv)
        return args.run(args)

    return main_guard(call)


if __name__ == "__main__":
    sys.exit(main())

"""`minigpt4 VERB ...`: each verb is a module with `add_arguments(parser)` and `run(args) -> exit code`."""

import argparse
import importlib
import sys

from ..common.errors import main_guard

VERBS = {
    "config": ("config_verb", "print a resolved config and where each value came from"),
    "data": (".checkup.data", "check training data before a run does"),
    "features": ("features", "compute what the frozen ViT makes of a config's pictures, once for all its epochs"),
    "describe": ("describe", "say what is in pictures, without a browser"),
    "eval": (".evaluation.run", "score a model on pictures: captions, things named, broken answers, questions"),
    "curate": (".curation.run", "make stage 2's pairs: a model describes photos, human captions repair what it says"),
    "doctor": (".checkup.doctor", "say what is wrong with a config's files and this machine, and what to do"),
    "parity": (".checkup.parity", "compare this model with the original on a golden set"),
    "export": ("export", "write the weights of a checkpoint alone, as safetensors"),
    "export-hf": ("hf.export_hf", "write the model as transformers' BLIP-2, which opens without this code"),
    "import-hf": ("hf.import_hf", "write the files that an exported folder was made of again"),
    "weights": ("weights", "fetch and convert the small frozen weights"),
    "prepare-vicuna": ("vicuna.prepare", "make Vicuna from LLaMA and its delta, and verify it"),
    "sample-set": ("sample_set", "make the sample set that the quickstart trains on"),
    "plan": ("plan", "say whether a config fits a GPU, and how long it takes"),
    "tiny": ("tiny", "train the small model that ships, from captioned photos to its figures"),
    "ablations": ("ablations", "train the small model in the paper's other ways: a table and a plot with error bars"),
    "quickstart": ("quickstart", "train both stages on the sample set and write a report"),
}


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that is called is imported, so `--help` answers at once."""
    parser = argparse.ArgumentParser(prog="minigpt4", description="MiniGPT-4: train it, prepare for it, talk to it.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, summary) in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [verb]:
            loaded = importlib.import_module(f".{module}", __package__)
            loaded.add_arguments(sub)
            sub.set_defaults(run=loaded.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code: the verb's, or 1 after a user error's message."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    return main_guard(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())

"""Train MiniGPT-4 from a YAML config.

python train.py --cfg-path train_configs/quickstart_stage1.yaml
torchrun --nproc-per-node 4 train.py --cfg-path train_configs/minigpt4_stage1_pretrain.yaml
python train.py --cfg-path ... --options run.init_lr=1e-3 run.output_dir=output/try
"""

import argparse
import sys

from minigpt4.common.errors import main_guard


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train MiniGPT-4 from a YAML config.")
    parser.add_argument("--cfg-path", required=True, help="the YAML config, e.g. train_configs/quickstart_stage1.yaml")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """config -> task -> model -> Runner.train()"""
    import torch

    from minigpt4 import conversation, tasks  # noqa: F401  (fill the registries, so that names can be checked)
    from minigpt4.common import dist_utils
    from minigpt4.common.config import load_config
    from minigpt4.common.logger import setup_logging
    from minigpt4.common.registry import TASKS
    from minigpt4.runners.runner import Runner

    setup_logging(dist_utils.rank())
    config = load_config(args.cfg_path, args.options, mode="train")
    device = dist_utils.training_device(config.run.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(config.run.seed)
    task = TASKS.get(config.run.task)(config)
    Runner(config, task, task.build_model(device), device).train()


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 after a message, or 128 + the number of the signal that ended the run. Tests call this."""
    args = parse_args(argv)
    return main_guard(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

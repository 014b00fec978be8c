"""Chat about images in the browser: config -> model -> Chat -> page.

python demo.py --cfg-path eval_configs/minigpt4_eval.yaml --gpu-id 0
"""

import argparse
import sys

from minigpt4.common.config import load_config
from minigpt4.common.dist_utils import choose_device
from minigpt4.common.errors import main_guard
from minigpt4.common.logger import setup_logging
from minigpt4.common.packages import require_packages


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat about images in the browser.")
    parser.add_argument("--cfg-path", default="eval_configs/tiny_eval.yaml", help="config (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu-id", type=int, metavar="N", help="run on this GPU")
    where.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="a public link through gradio's servers")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    setup_logging()
    require_packages("the chat page", "demo", "gradio")
    from minigpt4.serve import build_chat
    from minigpt4.serve.start import find_address, prepare_uploads

    name = f"cuda:{args.gpu_id}" if args.gpu_id is not None else args.device
    device = choose_device(name, f"--device {args.device}" if args.device else f"--gpu-id {args.gpu_id}")
    find_address(args.host, args.port)  # what would stop the page is told before the model is loaded
    prepare_uploads()
    config = load_config(args.cfg_path, args.options, mode="chat")
    chat = build_chat(config, device)
    from minigpt4.serve.app import build_app, launch

    app = build_app(chat, subtitle=f"{args.cfg_path} on {device}", questions=config.model.example_questions)
    launch(app, args.host, args.port, args.share)


if __name__ == "__main__":
    sys.exit(main_guard(main))

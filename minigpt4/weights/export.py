"""`minigpt4 export CHECKPOINT OUT.safetensors`: write the weights of a checkpoint alone, to share or to train on."""

import argparse
from pathlib import Path

from ..common.checkpoint import read_state, save_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint_N.pth")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--fp16", action="store_true", help="half the size; loading converts it back to fp32")


def run(args: argparse.Namespace) -> int:
    """Write the file and print what is in it."""
    state = read_state(args.checkpoint)
    if args.fp16:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, Path(args.out))
    parts = sorted({name.split(".")[0] for name in state})
    count = sum(tensor.numel() for tensor in state.values())
    print(f"{args.out}: {count:,} weights of {', '.join(parts)}, {Path(args.out).stat().st_size / 1e6:.1f} MB")
    return 0

"""What only a GPU can show, measured in minutes: `python -m tests.gpu` (see docs/gpu.md)."""

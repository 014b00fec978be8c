"""Models by their arch name.

In reading order: mini_gpt4.py, the model from picture to loss; its parts eva_vit.py, qformer.py, llm.py (with
llm_checks.py and llm_loading.py) and adapters.py; prompting.py and batch.py, from texts to tensors; unpadded.py, the
LLM without padding; published.py, the names in weight files; shapes.py, the model without memory.
"""

from .mini_gpt4 import MiniGPT4

__all__ = ["MiniGPT4"]

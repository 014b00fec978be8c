"""Convert whole models between formats.

folders.py writes a model's folder whole or not at all. vicuna/ makes Vicuna from LLaMA and its delta (`minigpt4
prepare-vicuna`); hf/ writes a MiniGPT-4 as transformers' BLIP-2 and back (`minigpt4 export-hf` and `import-hf`).
"""

"""Convert whole models between formats.

sharded.py reads and writes weight files larger than memory. vicuna/ makes Vicuna from LLaMA and its delta (`minigpt4
prepare-vicuna`); hf/ writes a MiniGPT-4 as transformers' BLIP-2 and back (`minigpt4 export-hf` and `import-hf`).
"""

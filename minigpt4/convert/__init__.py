"""Convert whole models between formats.

vicuna/ makes Vicuna from LLaMA and its delta (`minigpt4 prepare-vicuna`, begin with prepare.py); hf/ writes a MiniGPT-4
as transformers' BLIP-2 and back (`minigpt4 export-hf` and `import-hf`, begin with layout.py, then export_hf.py).
"""

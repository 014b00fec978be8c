"""Weight files: the small frozen weights, and a checkpoint's weights as safetensors.

small.py (`minigpt4 weights`) downloads and converts what small.toml lists; export.py (`minigpt4 export`) writes the
weights of a checkpoint into one file.
"""

"""Weight files: the small frozen weights, and a checkpoint's weights as safetensors.

small.py (`minigpt4 weights`) downloads what small_items.toml lists; small_items.py converts it. export.py (`minigpt4
export`) writes the weights of a checkpoint into one file.
"""

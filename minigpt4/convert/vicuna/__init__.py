"""Make Vicuna from LLaMA and its delta with one file of the result in memory at a time.

prepare.py is the command, which also checks the finished folder; llama_meta.py reads LLaMA folders in Meta's and
transformers' format; tokenizer.py finds, writes and checks the tokenizer.
"""

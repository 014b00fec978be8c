"""Make Vicuna from LLaMA and its delta with one tensor in memory at a time.

prepare.py is the command; llama_meta.py reads both forms of LLaMA folders, sharded.py reads and writes weight files,
tokenizer.py finds and writes the tokenizer, verify.py checks the finished folder.
"""

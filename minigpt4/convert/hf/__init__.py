"""Write a MiniGPT-4 as transformers' `Blip2ForConditionalGeneration`, and back.

layout.py maps the names of the weights, wide.py makes the vision norms exact; export_hf.py writes the weights and
compares the result, text.py writes the files around them (files/ are copied); import_hf.py is the way back.
"""

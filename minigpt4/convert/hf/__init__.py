"""Write a MiniGPT-4 as transformers' `Blip2ForConditionalGeneration`, and back.

layout.py maps the names of the weights; export_hf.py writes the weights,
text.py writes the files around them (files/ are copied); import_hf.py is the way back.
"""

"""`minigpt4 eval`: score a model on pictures. docs/evaluation.md defines every number.

In reading order: run.py, the command; data.py, annotation files (formats.toml) -> records; suites.py and suites.toml,
what is asked; answering.py, the model's answers; scoring.py, answers -> measures (measures.toml), with captions.py,
objects.py, failures.py, vqa_scores.py and judge.py; statistics.py, intervals; page.py, the report (two .html).
"""

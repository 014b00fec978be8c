"""`minigpt4 eval`: score a model on pictures. docs/evaluation.md defines every number.

In reading order: run.py, the command; data.py, annotation files -> records; suites.py, what each suite asks;
answering.py, the model's answers; scoring.py, answers -> measures, with captions.py, objects.py, failures.py,
vqa_scores.py and judge.py; statistics.py, intervals; page.py, the report (page.html, report.html).
"""

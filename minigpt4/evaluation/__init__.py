"""`minigpt4 eval`: data files -> records (data.py, vqa_data.py) -> answers (answering.py) -> scores -> page.py.

suites.py says what each suite asks, scoring.py how it scores; run.py joins it all. docs/evaluation.md defines every
number.
"""

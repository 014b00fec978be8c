"""`minigpt4 quickstart`: a warm start and both stages on a made sample set, the same question after each, a report.

run.py runs the steps; scores.py asks and scores, report.py writes the page. `minigpt4 sample-set` is sample_set.py, on
pictures.py (things.py placed on scenes.py) and captions.py.
"""

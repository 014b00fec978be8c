"""How the small model in checkpoints/tiny/ was trained: `minigpt4 tiny`, and the paper's ablations on it.

In reading order: photos.py makes the training list; words.yaml, stage0.yaml, stage1.yaml, stage2.yaml are the four
trainings; task.py, classes.py, captions.py and words.py are the parts that those name, registered by parts.py; train.py
runs all steps; ablations.py repeats a short stage 1 in the paper's other ways.
"""

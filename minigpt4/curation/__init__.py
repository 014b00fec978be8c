"""Make stage-2 data: a stage-1 model describes photos, the bad sentences are dropped, human captions fill the gaps.

Read in this order: run.py (the command), describe.py (the questions to the model), clean.py (which sentences stay),
folder.py (the folder that stage 2 reads, and report.html).
"""

"""What a user asks before a run; each question is a verb of the `minigpt4` command.

- `doctor/`: what is wrong with a config's files and this machine, and what to do.
- `plan/`: whether a config fits a GPU, and how long it takes.
- `data.py`, then `data_report.py`: which training samples cannot be used.
- `parity.py`, then `golden.py`: whether this model computes what the original does.
"""

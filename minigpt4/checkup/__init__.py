"""What a user asks before a run; each question is a verb of the `minigpt4` command.

- `doctor/`: what is wrong with a config's files and this machine, and what to do.
- `plan/`: whether a config fits a GPU, and how long it takes.
- `data.py`: which training samples cannot be used.
- `show_config.py`: what a config comes to, key by key.
"""

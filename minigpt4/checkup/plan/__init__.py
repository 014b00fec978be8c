"""`minigpt4 plan`: will a config fit a GPU, and how long will it take? docs/plan.md explains each term.

shapes.py reads the model's sizes, costs.py joins them with config and devices and has the formulas, predict.py adds
them up (`predict` is what other code calls), page.py is the command, page.txt what it prints.
"""

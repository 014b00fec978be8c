"""`minigpt4 plan`: will a config fit a GPU, and how long will it take? docs/plan.md explains each term.

shapes.py reads the model's sizes, setup.py joins them with config and devices, costs.py has the formulas, predict.py
adds them up (`predict` is what other code calls), page.py is the command and makes the tables of docs/plan.md.
"""

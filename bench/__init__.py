"""How fast the code is beside its peers and this machine's limits: `make bench` fills docs/performance.md.

Read in this order: __main__.py runs the rows; timer.py measures them all; sizes.py has the models and batches;
training.py, answering.py and input.py have a function a row; page.py writes what came out.
"""

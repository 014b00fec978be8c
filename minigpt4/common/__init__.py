"""What every room may import; nothing here imports another room of this package.

A config: schema.py, every key; config.py (with config_values.py, config_checks.py), from YAML to a checked config;
registry.py, names in YAML. Files: paths.py, download.py, identify.py, checkpoint.py. A run: precision.py, which dtype
computes what; optims.py, dist_utils.py, logger.py, gpus.py. For all: errors.py, messages for users; packages.py, what
is installed.
"""

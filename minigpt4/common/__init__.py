"""What every room may import; nothing here imports another room of this package.

In reading order: schema.py, every key of a config; config.py (with config_values.py and config_checks.py),
from YAML to a checked config; registry.py, names in YAML; errors.py, messages for users; precision.py, which dtype
computes what; checkpoint.py, identify.py and file_system.py, files; optims.py, logger.py, dist_utils.py, for a run.
"""

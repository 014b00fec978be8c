"""The `minigpt4` command: one module for each verb."""

"""Checkpoints, read safely from anywhere, and their key layouts: functions on state dicts."""

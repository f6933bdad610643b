"""Heads of detectors that keep a GPU busy, and what else knows mmdet."""

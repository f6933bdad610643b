"""What trained networks have learned, in numbers and pictures. Takes torch and numpy alone.

`plot_*.py` draw with matplotlib, which nothing else here imports. What knows OpenMMLab, models from
configs and batches, is in `kat_mm.openmmlab.analysis`.
"""

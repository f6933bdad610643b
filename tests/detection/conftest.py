import kat_mm.openmmlab  # noqa: F401, lets mmdet, whose results are the expected ones, run

"""Studies: trainings that differ in one thing each, repeated with several seeds, and their scores.

    study       what a study is, read from its file
    runs        a single training of it: its folder, its settings, how it ended
    logs        what a training has logged, as figures
    pool        many of them at a time, on the GPUs that there are
    summary     means and spreads, as a table, and all figures as CSV
    plot        the same as a picture

It knows no OpenMMLab: trainings are processes of tools/train.py, and `tools/ablate.py` says how
their configs are read.
"""

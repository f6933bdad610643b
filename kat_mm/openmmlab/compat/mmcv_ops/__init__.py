"""The ops behind `mmcv.ops`, from torchvision's kernels and PyTorch.

The functions are called by mmcv's `autograd.Function`s, so they are kernels: they build no graph,
and they write into the tensors that the caller allocated. A gradient is added to its buffer where
mmcv's kernel adds to it, and overwrites it elsewhere.
"""

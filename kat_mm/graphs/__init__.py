"""Functions on a GPU without their host: CUDA graphs of forward and backward. Takes torch alone."""

from .capture import CaptureError
from .graphed import Graphed, GraphedParts, graph_parts

__all__ = ['CaptureError', 'Graphed', 'GraphedParts', 'graph_parts']

"""What training and tools must know of a backbone, and ask it through this protocol alone."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """A backbone that layer decay, model checks, loading and swapping understand.

    A class need not inherit from it: having the members is enough.

    Attributes:
        out_channels: channels of each of its feature maps.
        out_strides: their strides in pixels.

    It may also have `fresh`, the names of its parts that no checkpoint of it has, and that thus
    learn at the rate of a head.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the depth of a parameter, from 0 on, and how many depths there are.

        What lies behind the last layer, or is new to any checkpoint, has the last depth.

        Args:
            param_name: its name in the model that the backbone is a part of.
            prefix: where the backbone is, such as 'backbone.'.
        """

    def adapt_checkpoint(self, content: object, source: str) -> dict[str, Tensor]:
        """Returns the weights in what a file held, with the backbone's keys and shapes.

        Args:
            content: a state dict, or what contains one.
            source: what messages call it.

        Raises:
            DataError: for weights of another architecture.
        """

    def check_image_size(self, height: int, width: int) -> None:
        """Raises a ConfigError for a size in pixels that the backbone does not take."""

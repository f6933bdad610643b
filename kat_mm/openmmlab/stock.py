"""A config with the parts of mmdet and mmseg in the places of ours, to compare the two."""

from mmengine.config import Config

from .configs import nested, type_name

PREFIXES = ('Batched', 'Fused')  # before the name of what a part stands for
OTHERS = {
    'BatchedRoIHead': 'StandardRoIHead',
    'RunLengthCocoMetric': 'CocoMetric',
    'PackByteSegInputs': 'PackSegInputs',
    'compact_collate': 'pseudo_collate',
}
ADDED = {'PackMasks'}  # transforms without a counterpart
ARGUMENTS = {'BatchedRoIHead': ('padded_masks',)}  # that what a part stands for does not take


def use_stock_parts(config: Config) -> None:
    """Replaces heads, necks, data preprocessors and transforms; the config computes the same.

    What keeps mixed precision or training right stays, such as FullPrecisionRoIExtractor.
    """
    _drop_added(config._cfg_dict)
    for node in nested(config._cfg_dict, 'type'):
        name = type_name(node)
        for argument in ARGUMENTS.get(name, ()):
            node.pop(argument, None)
        if name in OTHERS:
            node.type = OTHERS[name]
            continue
        for prefix in PREFIXES:
            if name.startswith(prefix):
                node.type = name.removeprefix(prefix)


def _drop_added(node) -> None:
    """Drops the transforms of `ADDED` from all lists in a node."""
    if isinstance(node, list):
        node[:] = [x for x in node if not (isinstance(x, dict) and type_name(x) in ADDED)]
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            _drop_added(value)

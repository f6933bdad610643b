"""What `import kat_mm.openmmlab` registers, among what others have registered."""

import importlib
import sys

import pytest
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import CheckpointLoader
from test_import import python

import kat_mm.openmmlab
import kat_mm.openmmlab.compat
from kat_mm.openmmlab import GRKAN, KAT, SimplePyramid
from kat_mm.rational import GroupRational


def test_parts_are_registered():
    for cls in (GroupRational, GRKAN, SimplePyramid, KAT):
        assert MODELS.get(cls.__name__) is cls
    assert HOOKS.get('SafeCheckpointHook') is kat_mm.openmmlab.SafeCheckpointHook


def test_reload_changes_nothing():
    known, finders = dict(MODELS.module_dict), list(sys.meta_path)
    loaders = dict(CheckpointLoader._schemes)
    for module in (kat_mm.openmmlab.compat, kat_mm.openmmlab):
        importlib.reload(module)
    assert MODELS.module_dict == known
    assert sys.meta_path == finders
    assert CheckpointLoader._schemes == loaders


@pytest.mark.slow
def test_names_of_plug_ins():
    code = """
        from torch import nn
        from mmengine.registry import MODELS
        from mmengine.runner import CheckpointLoader

        @MODELS.register_module()
        class LN2d(nn.Module):
            pass

        @CheckpointLoader.register_scheme('', force=True)
        def load_from_vault(filename, map_location): ...

        import kat_mm.openmmlab
        assert MODELS.get('LN2d') is LN2d
        assert CheckpointLoader._get_checkpoint_loader('a.pth') is load_from_vault
        """
    python(code)

"""What lets today's torch run the OpenMMLab releases: `install()`, and nothing by import alone."""

from .config_paths import find_configs_in_packages
from .ffn import honour_ffn_type
from .finder import install_mmcv_ext_finder
from .load_from import let_backbones_load
from .reading import read_safely
from .sync_bn import build_sync_bn_in_one_process


def install() -> None:
    """Makes mmcv's ops, mmengine's checkpoints, and parts and configs by name usable here.

    This is all that it changes of other packages. Any number of calls do it once.

    mmcv._ext (finder.py)
        What: a finder at the end of sys.meta_path offers `mmcv_ext.py` under that name.
        Why: mmcv.ops needs this compiled module, which has no wheel for a recent torch.
        For whom: an mmcv without it, where torchvision is installed.
        Left alone: a compiled mmcv, which any finder before this one finds.
    mmengine.runner.checkpoint.torch (reading.py)
        What: in this one module, `torch.load` is kat_mm's reader; all else of torch is torch's.
        Why: since torch 2.6 torch.load refuses mmengine's own checkpoints.
        For whom: all that mmengine's CheckpointLoader reads: files, ceph, pavi, open-mmlab://.
        Left alone: what torch.load reads with what the user has allowed it is its result, with
            any map_location. torch.load and its safe globals elsewhere are as they were.
    mmengine.runner.checkpoint.load_url (reading.py)
        What: torch.hub's function is called with weights_only=True; what that refuses, kat_mm's
            reader reads from the cache, or refuses too. A download whose name ends in a hash,
            as OpenMMLab's do (name-01234567.pth), must have it.
        Why: mmengine lets what it downloads run code, and checks no hash.
        For whom: http(s)://, torchvision://, open-mmlab://, mmcls://.
        Left alone: torch.hub's download and cache, model_dir, and that rank 0 goes first.
    mmengine.runner.checkpoint._safe_torch_load (reading.py)
        What: kat_mm's reader. Why, for whom: as above, in the maintained fork of mmengine.
    mmengine's CheckpointLoader (reading.py)
        What: the scheme hf-hub:, as hf-hub:owner/name and hf-hub:owner/name@revision. The error
            for a file that does not exist tells it, where its name may be that of a repository.
        Why: KAT is published there.
        Left alone: files; no name without a scheme reaches the network; loaders of the user's.
    mmengine.runner.checkpoint._load_checkpoint_to_model (load_from.py)
        What: weights of a bare backbone are made to fit, and those of another one refused.
        Why: mmengine loads what happens to have the same names, and warns of the rest.
        For whom: models with one backbone of the protocol `kat_mm.models.protocol.Backbone`.
        Left alone: all other models.
    mmengine.hooks.EMAHook.after_load_checkpoint (load_from.py)
        What: it takes a file that is a state dict, without the key 'state_dict'.
        Why: that is a KeyError, where mmengine's loading itself takes both.
        Left alone: files that have the key.
    mmcv.cnn.bricks.transformer.FFN (ffn.py)
        What: FFN(type='GRKAN', ...) builds by type.
        Why: mmdet's and mmseg's transformer layers take no type in their ffn_cfg.
        Left alone: calls without a type, and subclasses.
    mmcv.ops.sync_bn.dist (sync_bn.py)
        What: in this one module, the number of processes is 1 where there are no process groups.
        Why: MMSyncBN cannot be built there, though mmengine would make it a BatchNorm.
        Left alone: all else of torch.distributed, and distributed training.
    mmengine.config.Config._get_cfg_path (config_paths.py)
        What: `_base_ = 'PACKAGE::PATH'` is looked for where the module PACKAGE is, kat_mm's
            configs too.
        Why: mmengine knows its own packages alone, none of the maintained forks', and asks
            pkg_resources, which setuptools has dropped.
        Left alone: paths, and what is not found so.
    """
    install_mmcv_ext_finder()
    read_safely()
    let_backbones_load()
    honour_ffn_type()
    build_sync_bn_in_one_process()
    find_configs_in_packages()


__all__ = ['install']

from pathlib import Path

from mmcv_ops import COMPILED

import kat_mm.openmmlab.compat

kat_mm.openmmlab.compat.install()

# With a compiled mmcv, which goes before kat_mm's ops, there are none of these to test.
collect_ignore = []
if COMPILED:
    ops = Path(kat_mm.openmmlab.compat.__path__[0], 'mmcv_ops').glob('*.py')
    collect_ignore = [
        f'test_compat_{subject}.py' for subject in ('install', *(p.stem for p in ops))
    ]

# UPerNet on a plain backbone, as mmseg builds it for ViT: the maps of four blocks, at stride 16,
# which a neck brings to strides 4, 8, 16 and 32.
_base_ = 'mmseg::_base_/models/upernet_vit-b16_ln_mln.py'

custom_imports = dict(imports=['kat_mm.openmmlab'])
model = dict(
    type='FusedEncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(type='BatchedSegDataPreProcessor'),
    backbone=dict(
        _delete_=True,
        type='KAT',
        arch='small',
        img_size=224,
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
    ),
    neck=dict(type='FusedMultiLevelNeck', in_channels=[384] * 4, out_channels=384),
    decode_head=dict(type='FusedUPerHead', in_channels=[384] * 4),
    auxiliary_head=dict(type='FusedFCNHead', in_channels=384),
    # Whole images; --cfg-options model.test_cfg.mode=slide takes windows of this size instead.
    test_cfg=dict(mode='whole', crop_size=(512, 512), stride=(341, 341)),
)

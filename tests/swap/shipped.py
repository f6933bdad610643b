"""Configs that ship inside mmdet and mmsegmentation, by what they hold beside the backbone."""

DETECTION = {
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'Cascade Mask R-CNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'ATSS': 'atss/atss_r50_fpn_1x_coco',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco',
    'TOOD': 'tood/tood_r50_fpn_1x_coco',
    'YOLOF': 'yolof/yolof_r50-c5_8xb8-1x_coco',
    'Sparse R-CNN': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
    'DETR': 'detr/detr_r50_8xb2-150e_coco',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco',
    'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'Mask2Former, panoptic': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic',
    'SOLOv2': 'solov2/solov2_r50_fpn_1x_coco',
    'PointRend': 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
}
SEGMENTATION = {
    'FCN': 'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
    'PSPNet': 'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512',
    'DeepLabV3+': 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
    'UPerNet': 'upernet/upernet_r50_4xb4-80k_ade20k-512x512',
    'SETR-PUP': 'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512',
    'Segmenter': 'segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512',
    'SegFormer': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'OCRNet, dilated': 'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024',
    'OCRNet, HRNet': 'ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512',
    'K-Net': 'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
    'Mask2Former, semantic': 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
}
SHIPPED = {name: f'mmdet::{path}' for name, path in DETECTION.items()} | {
    name: f'mmseg::{path}' for name, path in SEGMENTATION.items()
}
# One of each way in which maps are replaced and taken: the others take a minute or more each.
REPRESENTATIVE = ('Mask R-CNN', 'RetinaNet', 'Deformable DETR', 'Segmenter', 'SegFormer')

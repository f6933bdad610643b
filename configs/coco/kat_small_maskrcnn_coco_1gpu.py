# Mask R-CNN with KAT-S on COCO by one GPU: the recipe's whole batch, at its learning rate.
_base_ = '../kat_maskrcnn_coco.py'

train_dataloader = dict(batch_size=16, num_workers=12)

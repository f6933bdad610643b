# UPerNet with KAT-S on ADE20K by one GPU: the recipe's whole batch, at its learning rate.
_base_ = '../kat_upernet_ade20k.py'

train_dataloader = dict(batch_size=16, num_workers=12)

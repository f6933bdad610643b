"""What `kat_mm.analysis` needs of OpenMMLab: trained models, their runs, images and losses."""

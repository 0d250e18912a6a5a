"""Hydra's side of lorax: one sweeper that drives grids and studies, one launcher that packs lanes."""

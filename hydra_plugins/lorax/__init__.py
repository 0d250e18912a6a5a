"""Hydra's side of lorax: one sweeper that drives grids and studies, one launcher that trains runs in packs.

The modules here do without `from __future__ import annotations`: Hydra executes plugin modules before they
are in sys.modules, where dataclasses would look up their string annotations.
"""

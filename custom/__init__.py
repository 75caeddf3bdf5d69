"""Segmentation of volume electron microscopy from frozen DINO features.

Layers, imports point one way (left to right may be imported by what stands to its right)::

    errors, channels, volumes, datalist  <-  features | targets | networks      <-  transforms, datasets,
                                             losses | segmentation | metrics         inferers, handlers, ...
"""

__version__ = "0.1.0"

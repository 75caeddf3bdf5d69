"""Segmentation of volume electron microscopy from frozen DINO features.

Layers, imports point one way (left to right may be imported by what stands to its right)::

    errors, volumes,  <-  features | targets | networks   <-  transforms, datasets,  <-  bundle/
    datalist, ...         losses | segmentation | metrics     training, output, ...
"""

__version__ = "0.1.0"

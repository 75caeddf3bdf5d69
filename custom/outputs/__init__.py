"""What inference leaves: OME-Zarr images with pyramids, a table of objects, meshes."""

"""Work on volumes of any size, block by block; the engine is volara, on daisy."""

"""Command-line tools of the bundle; no configuration refers to them."""

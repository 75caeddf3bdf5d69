"""A trained model as one zip that others can check and run, and its way to a hub."""

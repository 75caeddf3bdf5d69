"""Hand a bundle over, and look into one that was handed to you.

From inside ``bundle/``: ``python -m scripts.bundle <share|inspect|push> ...``
"""

import fire

from scripts.share import inspect, push, share

COMMANDS = {"share": share, "inspect": inspect, "push": push}

if __name__ == "__main__":
    fire.Fire(COMMANDS)

"""Check a bundle's configuration, hand the bundle over, and look into one that was handed to you.

From inside ``bundle/``: ``python -m scripts.bundle <check|share|inspect|push|export> ...``
"""

import fire

from scripts.check_config import check
from scripts.export import export
from scripts.share import inspect, push, share

COMMANDS = {"check": check, "share": share, "inspect": inspect, "push": push, "export": export}

if __name__ == "__main__":
    fire.Fire(COMMANDS)

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("tasks", "heavy"),
    [
        (["fragments", "region_graph", "graph_solve", "relabel", "pyramid", "objects"], "torch"),
        (["contingency"], "monai"),
    ],
)
def test_workers_import_no_more_than_they_need(tasks: list[str], heavy: str) -> None:
    """MONAI takes 5 seconds and 450 MiB of every worker, torch 2 seconds."""
    modules = [f"custom.blockwise.{task}" for task in ["worker", *tasks]]
    code = f"import sys, {', '.join(modules)}; sys.exit({heavy!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

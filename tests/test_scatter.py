import re

from custom.scatter import Point, scatter

POINTS = [Point(0.0, 2.0, "a < b"), Point(1.0, 1.0, "middle"), Point(2.0, 0.0, "c")]


def circles(svg):
    dot = r'<circle( class="chosen")? cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>(.*?)<'
    found = re.findall(dot, svg)
    return {text: (bool(chosen), float(x), float(y)) for chosen, x, y, text in found}


def test_points_lie_to_the_right_and_upwards_and_one_is_marked():
    found = circles(scatter("A title", "merge", "split", POINTS, 1))
    assert {text: chosen for text, (chosen, _, _) in found.items()} == {
        "a &lt; b": False,
        "middle": True,
        "c": False,
    }
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = (found[t] for t in ("a &lt; b", "middle", "c"))
    assert x0 < x1 < x2 and y0 < y1 < y2
    assert abs(x0 + x2 - 2 * x1) < 0.2 and abs(y0 + y2 - 2 * y1) < 0.2


def test_one_point_at_the_origin_can_be_drawn():
    assert circles(scatter("", "", "", [Point(0.0, 0.0, "only")], 0)) == {
        "only": (True, 68.0, 190.0)
    }

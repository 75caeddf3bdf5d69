import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.targets.runs import runs_of

LABELS = arrays(
    np.uint64,
    array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7),
    elements=st.sampled_from([0, 1, 5, 2**32 + 1, 2**63]),
)


@given(labels=LABELS)
def test_runs_paint_the_labels_and_nothing_else(labels):
    runs = runs_of(labels)
    ids = np.unique(labels[labels != 0])
    painted = np.zeros_like(labels)
    for number, z, y, begin, end in zip(
        runs.objects, runs.z, runs.y, runs.begin, runs.end, strict=True
    ):
        assert begin < end
        assert not painted[z, y, begin:end].any()
        painted[z, y, begin:end] = ids[number]
    np.testing.assert_array_equal(painted, labels)


@given(labels=LABELS)
def test_runs_of_an_object_stand_together_in_the_order_of_their_places(labels):
    runs = runs_of(labels)
    keys = list(zip(runs.objects, runs.z, runs.y, runs.begin, strict=True))
    assert keys == sorted(keys)
    for number, (first, last) in enumerate(zip(runs.first[:-1], runs.first[1:], strict=True)):
        assert (runs.objects[first:last] == number).all()


@given(data=st.data(), labels=LABELS)
def test_boxes_bound_what_lies_in_the_roi(data, labels):
    starts = [data.draw(st.integers(0, n)) for n in labels.shape]
    stops = [data.draw(st.integers(a, n)) for a, n in zip(starts, labels.shape, strict=True)]
    roi = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    runs = runs_of(labels)
    expected = []
    for number, label in enumerate(np.unique(labels[labels != 0])):
        places = np.argwhere(labels[roi] == label) + starts
        if len(places):
            box = np.stack([places.min(axis=0), places.max(axis=0) + 1], axis=1)
            expected.append([runs.first[number], runs.first[number + 1], *box.ravel()])
    np.testing.assert_array_equal(runs.boxes(roi), np.reshape(expected, (-1, 8)))


def test_an_empty_roi_inside_a_run_holds_nothing():
    runs = runs_of(np.ones((1, 1, 4), np.uint64))
    assert runs.boxes((slice(0, 1), slice(0, 1), slice(3, 3))).shape == (0, 8)

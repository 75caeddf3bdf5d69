import pytest

from custom.errors import InputError
from custom.segmentation.component_segmenter import ComponentSegmenter
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.segmentation_settings import METHOD, SETTINGS, chosen_method, method_name

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
COMPONENTS = ComponentSegmenter(OFFSETS, threshold=0.3, min_size=4)
MUTEX = MutexWatershedSegmenter(OFFSETS)


def stored(method, **settings):
    return {METHOD: method_name(method), SETTINGS: settings}


def test_stored_settings_count_and_ones_own_win():
    described = stored(COMPONENTS, threshold=0.7, min_size=9)
    assert chosen_method(described, COMPONENTS).threshold == 0.7
    mine = chosen_method(described, COMPONENTS, {"threshold": 0.8})
    assert (mine.threshold, mine.min_size) == (0.8, 9)


@pytest.mark.parametrize("described", [{}, {SETTINGS: {}}, {SETTINGS: {}, METHOD: None}])
def test_a_model_without_settings_leaves_any_method_as_it_is(described):
    assert chosen_method(described, COMPONENTS) == COMPONENTS
    assert chosen_method(described, MUTEX) == MUTEX


def test_settings_of_a_model_from_before_there_were_others_are_of_the_mutex_watershed():
    described = {SETTINGS: {"bias": -0.25}}
    assert chosen_method(described, MUTEX).bias == -0.25
    with pytest.raises(
        InputError, match=r"of MutexWatershedSegmenter.* is ComponentSegmenter: lay"
    ):
        chosen_method(described, COMPONENTS)


def test_settings_of_another_method_are_refused_unless_one_gives_ones_own():
    described = stored(COMPONENTS, threshold=0.7)
    with pytest.raises(InputError, match=r"'threshold': 0.7.* of ComponentSegmenter.*tune"):
        chosen_method(described, MUTEX)
    assert chosen_method(described, MUTEX, {"bias": -0.3}) == MUTEX.with_settings(bias=-0.3)


def test_an_unknown_setting_is_refused():
    with pytest.raises(InputError, match="unknown key 'biass'"):
        chosen_method(stored(MUTEX, biass=1), MUTEX)


def test_null_on_a_command_line_joins_none():
    changed = {"threshold": "null", "bias": -0.25}
    assert chosen_method(stored(MUTEX), MUTEX, changed) == MUTEX.with_settings(bias=-0.25)
    with_threshold = MUTEX.with_settings(threshold=0.5)
    assert chosen_method(stored(MUTEX), with_threshold, changed).threshold is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold of mutex watershed must be from 0 to 1, got 1.5"),
        ({"threshold": "high"}, "threshold of mutex watershed must be from 0 to 1, got 'high'"),
        ({"quantile": -0.1}, "quantile of mutex watershed"),
        ({"min_affinity": True}, "min_affinity of mutex watershed"),
        ({"min_size": 2.5}, "min_size of mutex watershed must be a whole number from 0 on"),
        ({"long_range_stride": 0}, "long_range_stride of mutex watershed .* from 1 on"),
        ({"bias": "low"}, "bias of mutex watershed must be a number, two of them"),
        ({"bias": [-0.5, float("nan")]}, "bias of mutex watershed must be"),
        ({"bias": [-0.5] * 4}, r"or 3 \(one for each offset\)"),
    ],
)
def test_values_out_of_range_are_refused_before_any_work(settings, message):
    with pytest.raises(InputError, match=message):
        chosen_method(stored(MUTEX), MUTEX, settings)

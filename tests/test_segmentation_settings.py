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

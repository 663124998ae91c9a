import math

import numpy as np
import pytest

from fcn_jax.data.balance import inverse_log, median_frequency
from fcn_jax.data.survey import Survey, check_source


def survey_of(*labels):
    examples = [
        {"image": np.zeros((*label.shape, 3), np.uint8), "label": label, "name": ""}
        for label in (np.array(label, np.int32) for label in labels)
    ]
    return check_source(examples, num_classes=4, progress=False)


# Classes 0, 1, 2 have 5, 2 and 1 pixels, in images of 10, 10 and 4; class 3 has none.
SURVEY = survey_of([[0, 0, 0, 0, 1, 255]], [[0, 1], [2, 255]])


def test_median_frequency_is_that_computed_by_hand():
    # Frequencies 0.5, 0.2 and 0.25.
    weights = median_frequency(SURVEY)
    np.testing.assert_allclose(weights, [0.5, 1.25, 1, 0], rtol=1e-12)


def test_median_frequency_of_an_even_number_is_between_the_middle_two():
    # Frequencies 0.8 and 0.2.
    weights = median_frequency(survey_of([[0, 0, 0, 0, 1]]))
    np.testing.assert_allclose(weights, [0.625, 2.5, 0, 0], rtol=1e-12)


def test_inverse_log_is_that_computed_by_hand():
    expected = [1 / math.log(1.02 + n / 8) for n in (5, 2, 1, 0)]
    np.testing.assert_allclose(inverse_log(SURVEY), expected, rtol=1e-12)
    assert inverse_log(SURVEY)[3] == pytest.approx(50.498, abs=1e-3)


@pytest.mark.parametrize("weights", [median_frequency, inverse_log])
def test_balance_of_nothing_is_refused(weights):
    survey = survey_of([[255, 255]])
    assert isinstance(survey, Survey)
    with pytest.raises(ValueError, match="no class occurs"):
        weights(survey)

"""Permits count inputs; a call without permits is refused at once."""

from __future__ import annotations

import pytest

from tgis_server.errors import Overloaded
from tgis_server.frontend.permits import Admission


def test_permits_are_released_when_the_call_ends():
    admission = Admission(2)

    with admission.hold(2):
        assert admission.num_held == 2

    assert admission.num_held == 0


def test_a_call_is_refused_and_takes_no_permits_if_too_few_are_free():
    admission = Admission(3)

    with admission.hold(2), pytest.raises(Overloaded, match=r"^Model is overloaded$"), admission.hold(2):
        pass

    assert admission.num_held == 0


def test_a_batch_larger_than_the_limit_never_fits():
    with pytest.raises(Overloaded), Admission(3).hold(4):
        pass


def test_a_failing_call_releases_its_permits():
    admission = Admission(1)

    with pytest.raises(KeyError), admission.hold(1):
        raise KeyError

    assert admission.num_held == 0

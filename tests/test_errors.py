"""Every error and warning of the tree goes from one process to another, and keeps what it says."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from candela import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
ARGUMENTS = {errors.Cancelled: (3, 8)}


def tree() -> set[type]:
    def below(cls):
        return {cls}.union(*map(below, cls.__subclasses__()))

    return {
        cls for cls in below(errors.CandelaError) | below(errors.CandelaWarning) if cls.__module__ == "candela.errors"
    }


def test_these_are_all():
    assert set(CLASSES) == tree()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_what_comes_back_is_the_same(cls, way):
    error = cls(*ARGUMENTS.get(cls, ("the VAE /a/b is of another model",)))
    back = way(error)
    assert type(back) is cls
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))

"""In a prompt, a log or a table of results, an object is written as one would make it."""

import keras
import pytest
from cases import ALL

import opnorm
from opnorm.showing import written

L = keras.layers
WRITTEN = {
    "SpectralNorm()": lambda: opnorm.SpectralNorm(),
    "SpectralNorm(value=2.0, seed=3)": lambda: opnorm.SpectralNorm(2, seed=3),
    "MaxSpectralNorm(max_value=0.9, axis=(-2, -1), groups=4)": lambda: opnorm.MaxSpectralNorm(
        0.9, axis=(-2, -1), groups=4
    ),
    "SpectralNorm(operator='convolution', strides=(2, 1), companion=False)": lambda: opnorm.SpectralNorm(
        operator="convolution", strides=(2, 1), companion=False
    ),
    "SpectralClip()": lambda: opnorm.SpectralClip(1.0),
    "SpectralClip(max_value=0.5, operator='convolution')": lambda: opnorm.SpectralClip(0.5, operator="convolution"),
    "Orthogonal(axis=-2)": lambda: opnorm.Orthogonal(axis=-2),
    "SpectralRegularizer()": lambda: opnorm.SpectralRegularizer(),
    "SpectralRegularizer(strength=0.1, power_iterations=5)": lambda: opnorm.SpectralRegularizer(
        0.1, power_iterations=5
    ),
    "SpectralMonitor(every=10, exclude='*/bias')": lambda: opnorm.SpectralMonitor(10, exclude="*/bias"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_it_shows_its_type_and_the_arguments_that_differ_from_the_defaults(text):
    assert repr(WRITTEN[text]()) == text


@pytest.mark.parametrize("name", ALL)
def test_what_a_constraint_shows_makes_the_same_one(name):
    constraint = ALL[name].build(0.7)
    again = eval(f"opnorm.{constraint!r}")
    assert again.get_config() == constraint.get_config()


def test_a_wrapper_shows_its_layer_and_its_name():
    layer = L.Dense(3, name="dense")
    wrapper = opnorm.SpectralNormalization(layer, value=0.9, name="wrapped")
    assert repr(wrapper) == f"SpectralNormalization({layer!r}, value=0.9, name='wrapped')"
    wrapper.trainable = False
    assert repr(wrapper).endswith(", value=0.9, name='wrapped', trainable=False)")
    wrapper.build((None, 4))
    assert "built=True" in repr(wrapper)
    assert "power_iterations" not in repr(wrapper)


def test_a_subclass_shows_its_own_name_and_arguments():
    class Half(opnorm.MaxSpectralNorm):
        def __init__(self, share=0.5):
            super().__init__(share)
            self.share = share

    assert repr(Half()) == "Half()"
    assert repr(Half(0.25)) == "Half(share=0.25)"


def test_an_object_that_is_half_made_is_shown_as_far_as_it_goes():
    made = object.__new__(opnorm.SpectralNorm)
    assert written(made) == "SpectralNorm()"
    made.axis = -2
    assert written(made) == "SpectralNorm(axis=-2)"

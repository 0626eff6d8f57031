"""What a client may say, and what it may not."""

from typing import Annotated

import pytest
from typing_extensions import TypedDict

from unicorn_monai.monailabel.client import (
    FIRST,
    NUMERIC,
    Device,
    Flag,
    Unknown,
    file_name,
    known,
    number,
    refuse_expressions,
    take,
    whole,
)
from unicorn_monai.system.records import one_of


class Sent(TypedDict, total=False):
    device: Device
    max_epochs: Annotated[int, NUMERIC, whole(1, 100)]
    weight: Annotated[float, NUMERIC, number(0, 10)]
    map: Annotated[str, FIRST, one_of(("labels", "entropy"))]
    store: Flag
    seed: Annotated[int, NUMERIC, whole(0, 2**63 - 1)]


@pytest.mark.parametrize(
    "sent",
    [
        "$__import__('os').system('ls')",
        "@network",
        "%other.json::key",
        "  $1",
        ["fine", "$1"],
        {"params": {"deep": [{"device": "@device"}]}},
        {"$key": 1},
        ("a", ("%b",)),
    ],
)
def test_what_a_configuration_would_evaluate_is_refused_wherever_it_stands(sent):
    with pytest.raises(ValueError, match="would evaluate"):
        refuse_expressions(sent)


@pytest.mark.parametrize(
    "sent", ["oct 1", "a$b@c%", {"label_info": [{"name": "RNFL", "idx": 1}]}, 3.0, None, [True, {}]]
)
def test_everything_else_passes(sent):
    refuse_expressions(sent)


def test_settings_are_taken_by_name_and_type_and_the_rest_is_left_out():
    sent = {
        "device": ["cpu", "cuda:99"],
        "max_epochs": "3",
        "weight": 2,
        "map": None,
        "store": "true",
        "tracking_uri": "x",
    }
    taken = take(sent, Sent)
    assert taken == {"device": "cpu", "max_epochs": 3, "weight": 2.0, "store": True}
    assert isinstance(taken["max_epochs"], int)


def test_a_seed_of_63_bits_loses_no_digit():
    assert take({"seed": 2**62 + 1}, Sent)["seed"] == 2**62 + 1


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"device": "$torch"}, r"'device' is '\$torch'; expected one of \['cpu'"),
        ({"device": "cuda:99"}, r"'device' is 'cuda:99'; expected one of \['cpu'"),
        ({"device": 0}, "'device' is '0'"),
        ({"max_epochs": 0}, "'max_epochs' is '0'; expected a whole number from 1 to 100"),
        ({"max_epochs": 1.5}, "expected a whole number"),
        ({"max_epochs": True}, "'max_epochs' is 'True'"),
        ({"max_epochs": float("nan")}, "'max_epochs' is 'nan'"),
        ({"weight": "much"}, "'weight' is 'much'; expected a number from 0 to 10"),
        ({"weight": [1]}, "'weight'"),
        ({"weight": True}, "'weight' is 'True'"),
        ({"weight": "nan"}, "'weight' is 'nan'"),
        ({"weight": float("nan")}, "'weight' is 'nan'"),
        ({"map": "labels; rm"}, r"'map' is 'labels; rm'; expected one of \['labels', 'entropy'\]"),
        ({"map": {"a": 1}}, "'map'"),
        ({"store": "perhaps"}, "'store' is 'perhaps'; expected true or false"),
        ({"store": "yes"}, "'store' is 'yes'; expected true or false"),
        ({"store": 1}, "'store' is '1'; expected true or false"),
    ],
)
def test_wrong_values_are_refused_by_name(sent, message):
    with pytest.raises(ValueError, match=message):
        take(sent, Sent)


def test_unknown_names_are_told_with_those_there_are():
    assert known("model", "a", {"a": 1}) == "a"
    with pytest.raises(Unknown, match=r"There is no model 'c'; there are: a, b\."):
        known("model", "c", ["b", "a"])
    with pytest.raises(Unknown, match="there are: none"):
        known("image", ["a"], [])


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", "$x", ".hidden", "a..b", "x" * 300, "é/"])
def test_names_that_would_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be used"):
        file_name("image id", name)


def test_ordinary_names_may_become_files():
    assert file_name("image id", "OCT_1 left-2.3+x") == "OCT_1 left-2.3+x"


def test_limits_hold_to_the_last_digit_and_beyond_any_float():
    assert take({"seed": 2**63 - 1}, Sent)["seed"] == 2**63 - 1
    for value in (2**63, 10**400):
        with pytest.raises(ValueError, match=r"'seed' is .*; expected a whole number from 0 to 9223372036854775807"):
            take({"seed": value}, Sent)

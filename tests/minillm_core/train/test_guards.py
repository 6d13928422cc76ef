import pytest

from minillm_core.spec import GuardSpec
from minillm_core.train.guards import Guards, RoundHealth, repetition


def health(length: float = 20.0, repeated: float = 0.1, ess: float = 0.8, kl: float = 0.5) -> RoundHealth:
    return RoundHealth(mean_length=length, repetition=repeated, effective_sample_size=ess, reverse_kl=kl)


def test_repetition_counts_within_each_response():
    assert repetition([[1, 2, 1, 2, 1, 2, 1, 2]], n=4) == (3, 5)
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]], n=4) == (0, 2)
    assert repetition([[1, 2]], n=4) == (0, 0)


def test_healthy_rounds_pass():
    guards = Guards(GuardSpec())
    for _ in range(5):
        assert guards.observe(health()) == {}
    assert guards.exhausted is None


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("length", health(length=4.0)),
        ("length", health(length=100.0)),
        ("repetition", health(repeated=0.9)),
        ("effective_sample_size", health(ess=0.01)),
    ],
)
def test_patience_runs_out_on_the_same_limit(name, bad):
    guards = Guards(GuardSpec(patience=2))
    guards.observe(health())
    assert list(guards.observe(bad)) == [name]
    assert guards.exhausted is None
    guards.observe(bad)
    assert guards.exhausted == name


@pytest.mark.parametrize(("kl", "said"), [(0.25, "fell from 0.500 to 0.250"), (0.75, "went from 0.500 to 0.750")])
@pytest.mark.parametrize(("name", "drift"), [("length", {"length": 4.0}), ("repetition", {"repeated": 0.9})])
def test_a_drift_is_told_together_with_the_reverse_kl(name, drift, kl, said):
    guards = Guards(GuardSpec())
    guards.observe(health())
    assert f"the reverse KL {said} nats a token" in guards.observe(health(kl=kl, **drift))[name]


def test_a_good_round_forgives():
    guards = Guards(GuardSpec(patience=2))
    guards.observe(health())
    guards.observe(health(length=4.0))
    guards.observe(health())
    guards.observe(health(length=4.0))
    assert guards.exhausted is None


def test_switched_off():
    guards = Guards(GuardSpec(enabled=False, patience=1))
    guards.observe(health())
    assert guards.observe(health(length=1.0)) == {}
    assert guards.exhausted is None


def test_state_goes_on():
    guards = Guards(GuardSpec(patience=2))
    guards.observe(health())
    guards.observe(health(length=4.0))
    again = Guards(GuardSpec(patience=2))
    again.load_state_dict(guards.state_dict())
    again.observe(health(length=4.0))
    assert again.exhausted == "length"

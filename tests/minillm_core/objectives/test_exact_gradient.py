"""The MiniLLM gradient against the gradient of the sequence-level reverse KL, every response listed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

# Test folders are no packages, so what two files share is loaded by its path.
_SPEC = importlib.util.spec_from_file_location("enumeration", Path(__file__).with_name("enumeration.py"))
enumeration = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = enumeration
_SPEC.loader.exec_module(enumeration)
World = enumeration.World

ALL = slice(None)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("vocab", "length", "seed"), [(2, 1, 0), (3, 3, 0), (3, 4, 1), (4, 3, 2)])
def test_on_policy_gradient_is_exact(vocab, length, seed):
    world = World(vocab, length, seed=seed)
    ones = torch.ones_like(world.student_logp_ST)
    assert world.probability(0.0).sum().item() == pytest.approx(1.0)
    got = world.gradient(ALL, world.probability(0.0), long_weights_ST=ones, single_weights_ST=ones)
    torch.testing.assert_close(got, world.exact_gradient(), rtol=1e-10, atol=1e-12)


def test_neither_part_alone_is_the_gradient():
    world = World()
    ones = torch.ones_like(world.student_logp_ST)
    q = world.probability(0.0)
    for options in ({"long_part": False}, {"single_step": False}):
        got = world.gradient(ALL, q, long_weights_ST=ones, single_weights_ST=ones, **options)
        assert relative(got, world.exact_gradient()) > 0.05


def test_starting_at_the_current_token_counts_its_reward_twice():
    """The reference code's sum from t estimates by sampling what the single-step part gives exactly."""
    world = World()
    ones = torch.ones_like(world.student_logp_ST)
    q = world.probability(0.0)
    exact = world.exact_gradient()
    long = world.gradient(ALL, q, long_weights_ST=ones, single_weights_ST=ones, start="current", single_step=False)
    torch.testing.assert_close(long, exact, rtol=1e-10, atol=1e-12)
    single = world.gradient(ALL, q, long_weights_ST=ones, single_weights_ST=ones, long_part=False)
    both = world.gradient(ALL, q, long_weights_ST=ones, single_weights_ST=ones, start="current")
    torch.testing.assert_close(both, exact + single, rtol=1e-10, atol=1e-12)


def test_a_baseline_changes_no_expectation():
    """The paper's factor R_t - 1 of the undecomposed gradient: the long part from t, one taken from each sum."""
    world = World()
    ones = torch.ones_like(world.student_logp_ST)
    options = {"long_weights_ST": ones, "single_weights_ST": ones, "baseline": 1.0}
    q, exact = world.probability(0.0), world.exact_gradient()
    undecomposed = world.gradient(ALL, q, start="current", single_step=False, **options)
    torch.testing.assert_close(undecomposed, exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(world.gradient(ALL, q, **options), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_weights_are_unbiased(alpha, seed):
    world = World(3, 4, seed=seed)
    mixed = world.probability(alpha)
    assert mixed.sum().item() == pytest.approx(1.0)
    step_ST = world.step_weights(alpha)
    product_ST, ones = step_ST.cumprod(1), torch.ones_like(step_ST)
    exact = world.exact_gradient()
    # The reward at t' was reached through every token up to t', so that is where its product ends.
    got = world.gradient(ALL, mixed, long_weights_ST=ones, single_weights_ST=product_ST, reward_weights_ST=product_ST)
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)
    # The single-step part is a sum over the vocabulary already: the product over the prefix alone serves as well.
    got = world.gradient(
        ALL, mixed, long_weights_ST=ones, single_weights_ST=product_ST / step_ST, reward_weights_ST=product_ST
    )
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


def test_product_up_to_the_token_leaves_the_rewards_after_it_uncorrected():
    """The paper's weight of equation 5 ends at t, while R_{t+1} is still summed under the mixture."""
    world = World(3, 4)
    product_ST = world.step_weights(0.2).cumprod(1)
    got = world.gradient(ALL, world.probability(0.2), long_weights_ST=product_ST, single_weights_ST=product_ST)
    assert relative(got, world.exact_gradient()) > 0.05


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_single_step_weight_on_the_single_step_part_changes_no_expectation(alpha):
    """E[w_t | prefix] = 1: the paper's weighted and the reference's unweighted single-step part agree on average."""
    world = World(3, 4)
    mixed, step_ST = world.probability(alpha), world.step_weights(alpha)
    ones = torch.ones_like(step_ST)
    weighted = world.gradient(ALL, mixed, long_weights_ST=step_ST, single_weights_ST=step_ST)
    unweighted = world.gradient(ALL, mixed, long_weights_ST=step_ST, single_weights_ST=ones)
    torch.testing.assert_close(weighted, unweighted, rtol=1e-9, atol=1e-11)


def measured() -> list[tuple[str, ...]]:
    """Rows of the page's table of biases: KL per token, longest response, alpha, and the columns after them."""
    page = (Path(__file__).parents[3] / "docs" / "algorithm.md").read_text()
    lines = page[page.index("\n| KL per token |") :].split("\n\n")[0].splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[3:]]


SPREADS = {"0.15": 0.5, "0.16": 0.5, "0.94": 1.0, "1.94": 1.5}


def worlds(row):
    return [World(3, int(row[1]), spread=SPREADS[row[0]], seed=seed) for seed in range(8)]


def estimators(world, alpha):
    """Probability of each response and weights of the gradient, column by column of the table."""
    mixed, step_ST = world.probability(alpha), world.step_weights(alpha)
    product_ST, ones = step_ST.cumprod(1), torch.ones_like(step_ST)
    return {
        "last factor": (mixed, {"long_weights_ST": step_ST, "single_weights_ST": step_ST}),
        "product": (mixed, {"long_weights_ST": product_ST, "single_weights_ST": product_ST}),
        "exact": (
            mixed,
            {
                "long_weights_ST": ones,
                "single_weights_ST": product_ST / step_ST,
                "reward_weights_ST": product_ST,
            },
        ),
        "no weight": (mixed, {"long_weights_ST": ones, "single_weights_ST": ones}),
        "alpha 0": (world.probability(0.0), {"long_weights_ST": ones, "single_weights_ST": ones}),
    }


def told(row):
    """What the page says of each estimator."""
    return dict(
        zip(estimators(World(), 0.5), ([float(one) for one in cell.split(", ")] for cell in row[3:]), strict=True)
    )


@pytest.mark.parametrize("row", measured(), ids=lambda row: "-".join(row[:3]))
def test_bias_of_the_single_step_approximation(row):
    """The last factor instead of the product: the figures of docs/algorithm.md, mean and worst of eight worlds."""
    alpha = float(row[2])
    divergences, cosines, biases = [], [], {"last factor": [], "product": [], "no weight": []}
    for world in worlds(row):
        q, mask = world.probability(0.0), world.mask_ST
        difference_S = ((world.student_logp_ST - world.teacher_logp_ST) * mask).sum(1)
        divergences.append(((q * difference_S).sum() / (q * mask.sum(1)).sum()).item())
        exact, columns = world.exact_gradient(), estimators(world, alpha)
        for name, found in biases.items():
            probability, weights = columns[name]
            got = world.gradient(ALL, probability, **weights)
            found.append(relative(got, exact))
            if name == "last factor":
                cosines.append(torch.cosine_similarity(got, exact, dim=0).item())
    assert sum(divergences) / 8 == pytest.approx(float(row[0]), abs=0.0051)
    for name, found in biases.items():
        assert sum(found) / 8 == pytest.approx(told(row)[name][0], abs=0.00051), name
    assert min(cosines) == pytest.approx(told(row)["last factor"][1], abs=0.00051)


# Each response has a gradient of its own: those of the longer ones take minutes.
@pytest.mark.parametrize("row", [row for row in measured() if row[1] == "3"], ids=lambda row: "-".join(row[:3]))
def test_spread_of_the_estimators(row):
    """The column sd of the same table: root of the total variance of one response's gradient, of each estimator."""
    spreads = {}
    for world in worlds(row):
        size = world.exact_gradient().norm()
        for name, (probability_S, weights) in estimators(world, float(row[2])).items():
            one = torch.ones(1, dtype=torch.float64)
            each = [world.gradient(slice(place, place + 1), one, **weights) for place in range(len(world.ids_ST))]
            gradients_SP = torch.stack(each)
            variance = (probability_S @ gradients_SP.square()).sum() - (probability_S @ gradients_SP).square().sum()
            spreads.setdefault(name, []).append((variance.sqrt() / size).item())
    assert {name: sum(found) / 8 for name, found in spreads.items()} == pytest.approx(
        {name: figures[-1] for name, figures in told(row).items()}, abs=0.0051
    )


def test_student_equal_to_teacher_has_no_gradient():
    world = World()
    world.teacher = world.student
    world.teacher_logp_ST = world.student_logp_ST
    weights_ST = world.step_weights(0.2)
    assert torch.equal(weights_ST, torch.ones_like(weights_ST))
    got = world.gradient(ALL, world.probability(0.2), long_weights_ST=weights_ST, single_weights_ST=weights_ST)
    assert got.abs().max().item() < 1e-15
